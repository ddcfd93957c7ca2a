"""The trials as the report shows them: what became of each, why, and where it stands beside the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from laconic.core import JsonObject, describe
from laconic.report.words import formats, points, points_at_most

Interval = tuple[float, float, float]
"""Value, low, high."""

STATUSES = {
    "chosen": "chosen",
    "passes": "passes on search",
    "fails": "does not pass on search",
    "noisy": "timing too noisy",
    "original": "the original",
    "rejected": "rejected early",
    "failed": "failed",
}


@dataclass(frozen=True)
class Row:
    """A trial. ``cost``: its latency over the original's; ``drop``: of the score on search; None where not measured.
    ``formats``: what its layers of few bits are stored at and computed in; ``only_stored``: no speed is from them."""

    number: int
    name: str
    status: str
    reason: str
    cost: Interval | None
    speedup: Interval | None
    drop: Interval | None
    file_bytes: float | None
    macs: float | None
    seconds: float
    formats: tuple[str, ...] = ()
    only_stored: bool = False

    @property
    def chosen(self) -> bool:
        return self.status == "chosen"


def rows(dossier: JsonObject) -> list[Row]:
    """Every trial, in the order in which they were made. The chosen one stands at its last timing, made afresh after
    it was chosen; the original stands where it is by definition."""
    return [_row(dossier, i, trial) for i, trial in enumerate(dossier["trials"])]


def _row(dossier: JsonObject, number: int, trial: JsonObject) -> Row:
    found = trial["measurements"]
    speedup: Interval | None = tuple(found["speedup"]) if "speedup" in found else None
    if trial["chosen"]:
        fresh = dossier["ratio"]["latency"]
        speedup = (fresh["value"], fresh["low"], fresh["high"])
    status = _status(trial)
    if status == "original":
        speedup = (1.0, 1.0, 1.0)
    return Row(
        number=number,
        name=describe(trial["recipe"]),
        status=status,
        reason=_reason(dossier, trial, status),
        cost=(1 / speedup[0], 1 / speedup[2], 1 / speedup[1]) if speedup else None,
        speedup=speedup,
        drop=tuple(found["drop"]) if "drop" in found else None,
        file_bytes=found["file_bytes"][0] if "file_bytes" in found else None,
        macs=found["macs"][0] if "macs" in found else None,
        seconds=trial["seconds"],
        formats=tuple(formats(trial.get("computed", []))),
        only_stored=trial.get("only_stored", False),
    )


def _status(trial: JsonObject) -> str:
    if trial["chosen"]:
        return "chosen"
    if not trial["recipe"]:
        return "original"
    if trial["error"] is not None:
        return "failed"
    if trial["rejected"] is not None:
        return "noisy" if "drop" in trial["measurements"] else "rejected"
    return "passes" if trial["passes"] else "fails"


def _reason(dossier: JsonObject, trial: JsonObject, status: str) -> str:
    """Why a trial cannot win, as far as the dossier tells; empty for one that can."""
    if status in ("failed", "rejected", "noisy"):
        return str(trial["error"] or trial["rejected"])
    if status == "original" or trial["passes"]:
        return ""
    found = {name: interval[0] for name, interval in trial["measurements"].items()}
    certificate = dossier["certificate"]
    if status == "chosen" and certificate and "expected_bound" in found:
        expected, bound = points_at_most(found["expected_bound"]), points_at_most(certificate["bound"])
        return f"from search a bound of {expected} points was to be expected; the holdout gave {bound}"
    return _shortfall(found, dossier["goal"]["max_drop"])


def _shortfall(found: Mapping[str, float], max_drop: float) -> str:
    """What a trial that was measured to the end lacks."""
    allowed = points(max_drop)
    if found.get("drop", 0.0) > max_drop:
        return f"its drop is above the {allowed} points allowed"
    if found.get("expected_bound", 0.0) > max_drop:
        expected = points_at_most(found["expected_bound"])
        return f"a holdout like search would bound its drop at {expected} points; {allowed} are allowed"
    return "no improvement on the original, or outside the limits" if "speedup" in found else "not timed"


def front(found: Sequence[Row]) -> list[Row]:
    """The Pareto front: those that no other beats in both latency and drop; by latency, the fastest first.

    Trials whose timing was too noisy, and those that were not measured to the end, do not count.
    """
    able = [r for r in found if r.cost and r.drop and r.status not in ("noisy", "rejected", "failed")]
    best: list[Row] = []
    for row in sorted(able, key=_place):
        if not best or _place(row)[1] < _place(best[-1])[1]:
            best.append(row)
    return best


def _place(row: Row) -> tuple[float, float]:
    assert row.cost is not None
    assert row.drop is not None
    return row.cost[0], row.drop[0]
