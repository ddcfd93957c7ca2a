"""The tables of docs/results.md about the smallest networks for MNIST: functions of one run record."""

from __future__ import annotations

from benchmarks import records
from benchmarks.markdown import NOT_RUN, Row, measured_on, table

PUBLISHED = {
    "fixed": "Published, not run here, by what each counts as size: LeNet-300-100, Deep Compression 27 KB at 1.58 % "
    "(arXiv 1510.00149), entropy-penalised reparameterization 8.56 KB at 1.9 % (1906.06624); LeNet-5-Caffe, Deep "
    "Compression 44 KB at 0.74 %, MIRACLE 1.52 kB at 0.96 % and 3.03 kB at 0.69 % (1810.00440).",
    "free": "Published, not run here: MIRACLE, 1.52 kB at 0.96 % and 3.03 kB at 0.69 %, both of LeNet-5-Caffe.",
}


def fixed() -> str:
    """LeNets, pruned."""
    return _table("fixed")


def free() -> str:
    """Networks of any form."""
    return _table("free")


def _table(kind: str) -> str:
    found = records.read("mnist_records")
    runs = [run for run in found["runs"] if run["table"] == kind] if found else []
    if found is None or not runs:
        return NOT_RUN
    names = list(dict.fromkeys(run["name"] for run in runs))
    lines = [_line([run for run in runs if run["name"] == name]) for name in names]
    columns = ["network", "seeds", "weights that are not zero", "payload, bytes", "whole file, bytes"]
    columns += ["test error", "wanted, bytes", "at an error of", "reached, payload", "reached, whole file"]
    n = runs[0]["n"]
    said = (
        f"Means over the seeds of the whole procedure, each seed's in brackets; n = {n['test']:,} test pictures, read "
        f"once per seed. Chosen on {n['search']:,} training pictures that nothing was trained on, but see above. "
        f"{PUBLISHED[kind]}"
    )
    return f"{table(columns, lines)}\n\n{said}{measured_on(found)}"


def _line(runs: list[Row]) -> list[str]:
    sizes = {name: _mean([run[f"{name}_bytes"] for run in runs]) for name in ("payload", "packed")}
    errors = [run["wrong"]["test"] / run["n"]["test"] for run in runs]
    used = [sum(layer["used"] for layer in run["layers"]) for run in runs]
    wanted, error = runs[0]["wanted_bytes"], runs[0]["wanted_error"]
    accurate = _mean(errors) <= error + 1e-9
    return [
        runs[0]["name"],
        str(len(runs)),
        f"{_mean(used):,.0f}",
        _each(sizes["payload"], [run["payload_bytes"] for run in runs], "{:,.0f}"),
        _each(sizes["packed"], [run["packed_bytes"] for run in runs], "{:,.0f}"),
        _each(_mean(errors), errors, "{:.2%}"),
        f"{wanted:,}",
        f"{error:.2%}",
        *("yes" if accurate and sizes[name] <= wanted else "**no**" for name in ("payload", "packed")),
    ]


def _each(mean: float, values: list[float], form: str) -> str:
    """``**2** (1, 3)``"""
    return f"**{form.format(mean)}**" + (f" ({', '.join(form.format(v) for v in values)})" if len(values) > 1 else "")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
