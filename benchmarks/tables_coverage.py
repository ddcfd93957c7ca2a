"""The table of the coverage benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks import records
from benchmarks.markdown import NOT_RUN, Row, table

_SOURCES = {"torchvision": "torchvision's classifiers", "timm": "timm, a family each", "transformers": "transformers"}
_STATES = ("passed", "left whole", "failed")


def coverage() -> str:
    """By source: how many networks passed, of how many; then each that did not, and why."""
    found = records.read("coverage")
    if not found:
        return NOT_RUN
    rows: list[Row] = found["rows"]
    lines = [
        _line(name, [row for row in rows if row["name"].startswith(f"{source}:")]) for source, name in _SOURCES.items()
    ]
    lines.append(_line("all", rows))
    columns = ["networks", "run", *_STATES, "parameters left, median", "file from torch, at most"]
    others = [f"torch-pruning {state}" for state in ("ran", "pruned", "failed")]
    return "\n\n".join((table([*columns, *others], lines), *_exceptions(rows), *_onnx(rows)))


def _line(name: str, rows: Sequence[Row]) -> list[str]:
    run = [row["laconic"] for row in rows if "laconic" in row]
    peer = [row["torch_pruning"] for row in rows if "torch_pruning" in row]
    passed = [row for row in run if row["status"] == "passed"]
    left = f"{statistics.median(row['params_left'] / row['params'] for row in passed):.0%}" if passed else ""
    apart = f"{max(row['difference'] for row in passed):.0e}" if passed else ""
    counts = [str(sum(row["status"] == state for row in run)) for state in _STATES]
    pruned, failed = (str(sum(row["status"] == state for row in peer)) for state in ("passed", "failed"))
    return [name, f"{len(run)} of {len(rows)}", *counts, left, apart, str(len(peer)), pruned, failed]


def _exceptions(rows: Sequence[Row]) -> list[str]:
    """What did not pass, and why."""
    found = []
    for row in rows:
        state = row.get("laconic", {"status": "passed"})
        if state["status"] != "passed":
            why = state.get("why") or "; ".join(state["left_whole"])
            found.append(f"`{row['name']}` {state['status']}: {why.replace('|', '/')}")
    return ["Not passed: " + ". ".join(found) + "."] if found else []


def _onnx(rows: Sequence[Row]) -> list[str]:
    """Files of torch's two exporters, read back."""
    found = []
    for how in ("torch.export", "TorchScript"):
        files = {row["name"]: row[f"onnx {how}"] for row in rows if f"onnx {how}" in row}
        if files:
            agree, pruned = (sum(f["status"] in states for f in files.values()) for states in (_AGREE, ("pruned",)))
            failed = [f"`{name}`: {f['why']}" for name, f in files.items() if f["status"] == "failed"]
            rest = f" Failed: {'; '.join(failed)}." if failed else ""
            found.append(
                f"ONNX files written by {how}: {len(files)} read, {agree} agree with torch, {pruned} were pruned and "
                f"deployed again.{rest}"
            )
    return found


_AGREE = ("agrees", "pruned")
