"""The holdout: opened once, in an order that was written down before, and what it proves.

Learn then Test (Angelopoulos et al. 2021, arXiv 2110.01052) with a fixed sequence: the front is written to the ledger,
the least compressed first; then each candidate is tested at the full level until the first that fails; the cheapest of
those that passed wins. A second opening of the same holdout is counted and said: it is not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from laconic import proof
from laconic.core import JsonObject, Trial
from laconic.search.choose import FRONT, Judge
from laconic.story.trials import Trials, unpack


@dataclass(frozen=True)
class Verdict:
    """What the holdout said: the winner, whether it is certified, and the certificate (of the winner, or of the best
    candidate that failed). ``scores`` by trial key, on the holdout."""

    winner: Trial
    certified: bool
    certificate: JsonObject
    scores: dict[str, float]
    tested: list[JsonObject]


def candidates(judge: Judge, tried: Sequence[Trial], free: bool) -> tuple[list[Trial], str | None]:
    """What to show to the holdout, in order, and why none of it may win: the front; where there is none, what search
    trusts most; where nothing was scored to the end, the one that was given up with the best score. Where the search
    was not ``free`` (a recipe was given), an improvement is not asked for, only that the limits are kept."""
    scored = measured(tried)
    able = judge.front(scored) if free else list(filter(judge.within_limits, scored))
    if able:
        return able, None
    if scored:
        safest = sorted(scored, key=lambda t: (t.measurements["p_search"].value, t.recipe.key))
        return safest[:FRONT], "no candidate is better than the original within the limits"
    given_up = [t for t in tried if t.error is None and "drop" not in t.measurements]
    nearest = sorted(given_up, key=lambda t: (-t.measurements["score"].value, t.recipe.key))
    return nearest[:1], "every candidate fell clearly below the floor"


def measured(tried: Sequence[Trial]) -> list[Trial]:
    """Those that were scored to the end and timed."""
    return [t for t in tried if {"drop", "speedup"} <= t.measurements.keys()]


def certify(trials: Trials, judge: Judge, front: list[Trial], withheld: str | None = None) -> Verdict:
    """Test ``front`` (not empty, in their order) on the holdout. What the ledger already holds is not redone.
    ``withheld`` says why none of them may win: the holdout is asked all the same, but nothing is certified."""
    keys = [trial.key for trial in front]
    opening = _opened(trials, keys, judge.max_drop)
    records = {key: unpack(packed) for key, packed in opening["records"].items()}
    baseline, binary = records[trials.baseline_key], trials.described["metric"]["binary"]
    p_values = [proof.doubt_floor(baseline, records[key], judge.max_drop, binary) for key in keys]
    alpha = 1 - trials.goal.confidence
    passed = [front[i] for i in proof.fixed_sequence(p_values, alpha)]
    winner = judge.best(passed) or judge.best([t for t in front if judge.passes(t)]) or front[0]
    tested = [
        {"key": key, "recipe": trial.recipe.to_json(), "p": p, "passed": trial in passed}
        for key, trial, p in zip(keys, front, p_values, strict=True)
    ]
    return Verdict(
        winner=winner,
        certified=bool(passed) and withheld is None,
        certificate={
            **_certificate(trials, judge, baseline, records[winner.key], opening, len(keys)),
            "withheld": withheld,
        },
        scores={key: float(np.mean(values)) for key, values in records.items()},
        tested=tested,
    )


def _opened(trials: Trials, keys: list[str], max_drop: float) -> JsonObject:
    """The holdout row of this front: from the ledger, or from an opening that the ledger announces first."""
    ledger = trials.ledger
    front: dict[str, Any] = {"keys": keys, "max_drop": max_drop, "confidence": trials.goal.confidence}
    known = ledger.find("holdout", **front)
    if known is not None:
        return known
    if ledger.find("front", **front) is None:
        ledger.append({"row": "front", **front})
    for key in keys:
        row = ledger.find("trial", key=key)
        assert row is not None
        trials.worker.call("rebuild", row["recipe"], key, progress=trials.reporter.progress)
    opening = 1 + sum(1 for _ in ledger.of("holdout"))
    records = trials.worker.call("holdout", keys, progress=trials.reporter.progress)
    row = {"row": "holdout", **front, "opening": opening, "records": records}
    ledger.append(row)
    if opening > 1:
        trials.reporter.note(f"this holdout was opened {opening} times: the certificate is not independent")
    return row


def _certificate(
    trials: Trials, judge: Judge, baseline: Any, mine: Any, opening: JsonObject, tested: int
) -> JsonObject:
    metric, confidence = trials.described["metric"], trials.goal.confidence
    drop, bound = proof.bound_drop(baseline, mine, confidence, metric["binary"])
    lost, won = proof.count_flips(baseline, mine) if metric["binary"] else (None, None)
    return {
        "metric": metric["name"],
        "drop": drop,
        "bound": bound,
        "max_drop": judge.max_drop,
        "confidence": confidence,
        "n": len(mine),
        "lost": lost,
        "won": won,
        "test": "exact unconditional, paired" if metric["binary"] else "betting, paired",
        "tested": tested,
        "opening": opening["opening"],
        "independent": opening["opening"] == 1,
    }
