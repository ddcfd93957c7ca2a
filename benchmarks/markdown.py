"""How a run record becomes a table in Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from benchmarks import records

Row = dict[str, Any]

NOT_RUN = "*This benchmark was not run yet: `make bench`.*"


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Rows under their columns; of none, that the benchmark was not run."""
    if not rows:
        return NOT_RUN
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def record_table(
    name: str, columns: list[str], line: Callable[[Row], list[str]], below: Callable[[Row], str] | None = None
) -> str:
    """The rows of a record, each as ``line`` writes it; then what ``below`` says of all, and where it was measured."""
    found = records.read(name)
    if not found:
        return NOT_RUN
    said = f"\n\n{below(found)}" if below else ""
    return table(columns, [line(row) for row in found["rows"]]) + said + measured_on(found)


def measured_on(record: Row | None) -> str:
    """Date, machine and versions, in a sentence of its own."""
    if record is None:
        return ""
    machine, versions = record["machine"], record["libraries"]
    names = [f"{name} {versions[name]}" for name in ("onnxruntime", "openvino") if name in versions]
    where = f"{machine['processor']}, {machine['architecture']}, {machine['cores']} core{'s' * (machine['cores'] > 1)}"
    return f"\n\nMeasured on {record['date']} on {where}, one thread, batch 1; {', '.join(names)}."


def speed(found: Row | None, digits: int = 2) -> str:
    """A ratio with its interval at 95 %, and whether it was measured in noise; nothing where it was not measured."""
    if not found:
        return ""
    value, low, high = (f"{found[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value}x ({low}-{high}){', noisy' if found.get('noisy') else ''}"


def points_at_least(fraction: float) -> str:
    """A lower bound in points, rounded down."""
    return f"{math.floor(1e4 * fraction + 1e-6) / 100 + 0.0:.2f}"
