"""A model's profile in words and cells: the same ones on the terminal and on the page."""

from __future__ import annotations

from laconic.core import JsonObject
from laconic.report.svg import shorten
from laconic.report.words import count, factor, latency, size

COLUMNS = ("layer", "params", "MACs", "DRAM", "op/B", "roofline", "ms", "share")
_NAME = 22
_JOULES = (("J", 1e12), ("mJ", 1e9), ("µJ", 1e6), ("nJ", 1e3), ("pJ", 1.0))


def shares(found: JsonObject, key: str) -> list[float]:
    """Each layer's share of a quantity; the runtime's own nodes, which are of no layer, count in the whole."""
    values = [row[key] or 0 for row in found["layers"]]
    whole = sum(values) + (sum(found["other_ms"].values()) if key == "time_ms" else 0)
    return [value / whole if whole else 0.0 for value in values]


def weightiest(found: JsonObject, top: int) -> list[int]:
    """The indices of the layers with the largest share of anything, in the model's order."""
    each = [shares(found, key) for key in ("params", "macs", "dram_bytes", "time_ms")]
    most = [max(column) for column in zip(*each, strict=True)]
    return sorted(sorted(range(len(most)), key=lambda i: -most[i])[:top])


def layer_cells(found: JsonObject, top: int) -> tuple[list[list[str]], str]:
    """Rows of :data:`COLUMNS` for the ``top`` layers, and which these are if there are more."""
    chosen = weightiest(found, top)
    timed = shares(found, "time_ms" if found["latency_ms"] and any(shares(found, "time_ms")) else "macs")
    rows = []
    for i in chosen:
        row = found["layers"][i]
        rows.append(
            [
                shorten(row["name"] or "(model)", _NAME),
                count(row["params"]) if row["params"] else "",
                count(row["macs"]) if row["macs"] else "",
                size(row["dram_bytes"]) if row["dram_bytes"] else "",
                _number(row["intensity"]),
                _time(row["bound_ms"]),
                _time(row["time_ms"]),
                f"{timed[i]:.1%}",
            ]
        )
    every = len(found["layers"])
    return rows, f"the {len(rows)} weightiest of {every} layers" if every > len(rows) else ""


def _number(value: float | None) -> str:
    return "" if value is None else factor(value)


def _time(ms: float | None) -> str:
    return "" if ms is None else f"{ms:.3g}"


def energy(pj: float) -> str:
    """An energy for people: 12.3 mJ."""
    for unit, scale in _JOULES:
        if pj >= scale:
            return f"{factor(pj / scale)} {unit}"
    return f"{pj:.2g} pJ"


def totals(found: JsonObject) -> list[list[str]]:
    """Name, value and what to know of it."""
    least = "at least " if found["unsupported"] else ""
    nonzero = "" if found["nonzero"] is None else f"{found['nonzero'] / max(1, found['params']):.2%} of them not zero"
    cache = f"through a cache of {size(found['cache_bytes'])}, modelled"
    spent = found["energy"]
    whole = sum(spent.values())
    parts = ", ".join(f"{name.removesuffix('_pj')} {energy(value)}" for name, value in spent.items())
    rows = [
        ["parameters", count(found["params"]), f"{size(found['weights_bytes'])} in their bits; {nonzero}".rstrip("; ")],
        ["MACs", least + count(found["macs"]), f"{least}{count(found['flops'])} operations, elementwise ones too"],
        ["activations", size(found["activations_bytes"]), f"at most {size(found['peak_activations_bytes'])} at once"],
        ["memory traffic", size(found["traffic_bytes"]), f"{size(found['dram_bytes'])} with DRAM {cache}"],
        ["intensity", _number(found["intensity"]), "operations per byte with DRAM"],
        ["energy", energy(whole), f"{parts} (45 nm, modelled)"],
        [
            "backward",
            f"{least}{count(found['backward_macs'])} MACs",
            f"{size(found['backward_traffic_bytes'])} of traffic, {size(found['kept_bytes'])} of activations kept",
        ],
    ]
    return rows + _timed(found)


def _timed(found: JsonObject) -> list[list[str]]:
    rows = []
    roof = found["roofline"]
    if roof:
        peaks = ", ".join(f"{count(value)}op/s {name}" for name, value in roof["peak"].items())
        bound = latency(found["bound_ms"]) if found["bound_ms"] is not None else "-"
        rows.append(["roofline", bound, f"of {size(roof['bandwidth'])}/s, {peaks}, measured here"])
    times = found["latency_ms"]
    if times:
        spread = f"p90 {latency(times['p90'])}, n = {times['n']}; {factor(found['per_second'])} samples per second"
        rows.append(["latency", latency(times["p50"]), spread])
        layers = sum(row["time_ms"] or 0 for row in found["layers"]) + sum(found["other_ms"].values())
        if layers:
            rows.append(["in the layers", latency(layers), "undisturbed, by the runtime's own profile"])
        rows.append(["file", size(found["file_bytes"]), f"that {found['target'].partition(',')[0]} opens"])
    return rows


def notes(found: JsonObject) -> list[str]:
    """What the reader must know of the numbers: one line each."""
    lines = []
    if found["unsupported"]:
        named = ", ".join(f"{name} x{n}" for name, n in found["unsupported"].items())
        lines.append(f"Not counted, since nothing is known of them: {named}. The totals are at least what is said.")
    if found["not_timed"]:
        lines.append(f"Not timed: {found['not_timed']}.")
    elif not any(row["time_ms"] for row in found["layers"]):
        lines.append("This runtime does not say how long each layer takes.")
    return lines


def headline(found: JsonObject) -> str:
    """The model in one line."""
    times = found["latency_ms"]
    least = "at least " if found["unsupported"] else ""
    parts = [f"{count(found['params'])} parameters", f"{least}{count(found['macs'])} MACs"]
    return ", ".join([*parts, latency(times["p50"])] if times else parts)


def short_name(found: JsonObject) -> str:
    """The model's name without the user's folders."""
    name = str(found["model"])
    return name.rpartition("/")[2].rpartition("\\")[2] if "/" in name or "\\" in name else name
