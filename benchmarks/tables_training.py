"""The tables of docs/results.md about how fast, and how well, laconic trains: functions of one run record."""

from __future__ import annotations

from benchmarks import records
from benchmarks.markdown import NOT_RUN, Row, record_table, table


def speed() -> str:
    """Seconds of a step beside torch's own."""
    found = records.read("training")
    if not found:
        return NOT_RUN
    columns = ["network", "batch", "torch, ms a step", "laconic, ms a step", "faster"]
    return table(columns, [_speed(row) for row in found["speeds"]])


def _speed(row: Row) -> list[str]:
    times = [f"{1e3 * row[key]:.1f}" for key in ("torch_seconds", "seconds")]
    return [row["network"], str(row["batch"]), *times, f"**{row['faster']:.2f}x**"]


def quality() -> str:
    """The same steps in the numbers of this processor and in float32."""

    def line(row: Row) -> list[str]:
        lost = [f"{100 * row[key]:.2f}" for key in ("drop", "drop_at_most")]
        return [row["name"], row["numbers"], f"{row['top1']:.2%}", *lost, f"{row['seconds']:.0f}"]

    def below(found: Row) -> str:
        return (
            f"ResNet-20, one epoch, scored on {found['rows'][0]['n']:,} test pictures; CPU seconds of the whole recipe."
        )

    columns = ["step", "computed in", "top-1", "points lost", "at most (95 %)", "seconds"]
    return record_table("training", columns, line, below)
