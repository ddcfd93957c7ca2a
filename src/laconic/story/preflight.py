"""Seconds before hours: what would spoil the long work is found on the original alone.

The way from torch to the runtime and back was walked by the baseline's trial. Here its score is judged, the disk and
the memory are looked at, and the least floor that this holdout can prove is stated before anything is searched.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil

from laconic import proof
from laconic.core import JsonObject
from laconic.errors import DataError, GoalError, ModelError, ResourceError
from laconic.story.trials import Trials

DISCORDANCES = (0.0, 0.01, 0.04)
_FILES_KEPT = 60
_SURE = 0.99


def require_disk(folder: Path, baseline_bytes: int) -> None:
    """Refuse to begin where the trials' files would not fit."""
    free, needed = shutil.disk_usage(folder).free, baseline_bytes * _FILES_KEPT
    if free < needed:
        raise ResourceError(
            "not enough disk",
            got=f"{free / 1e6:.0f} MB free",
            wanted=f"{needed / 1e6:.0f} MB",
            fix="give another --out",
        )


def memory_limit() -> int:
    """The memory that the worker may use: nine tenths of what is free now."""
    return int(psutil.virtual_memory().available * 0.9)


def check_score(trials: Trials, expected: float | None) -> None:
    """Refuse a baseline that guesses, or whose score is not what the user expects of it."""
    row, metric = trials.baseline_row, trials.described["metric"]
    n, score = len(row["records"]), float(row["score"])
    if not metric["binary"]:
        if expected is not None and abs(score - expected) > 0.02:
            raise ModelError("the score is not what was expected", got=f"{score:.3f}", wanted=f"{expected:.3f}")
        return
    low, high = proof.proportion_interval(round(score * n), n, _SURE)
    if metric["chance"] is not None and low <= metric["chance"]:
        raise DataError(
            f"the original scores {score:.1%} on {n} samples, where guessing gives {metric['chance']:.1%}",
            fix="check pre-processing (--preprocess), the order of the labels and the weights",
        )
    if expected is not None and not low <= expected <= high:
        raise ModelError(
            "the original's score is not what --expect-score says",
            got=f"{score:.1%} on {n} samples ({low:.1%} to {high:.1%} at 99 %)", wanted=f"{expected:.1%}",
            fix="check pre-processing (--preprocess), the order of the labels and the weights",
        )  # fmt: skip


def check_floor(trials: Trials) -> None:
    """Refuse a floor at or below chance: every model would meet it."""
    score, chance = float(trials.baseline_row["score"]), trials.described["metric"]["chance"]
    if score - trials.max_drop <= (chance or 0.0):
        raise GoalError(
            "the floor is not above guessing", got=f"{score:.1%} less {trials.max_drop:.1%}",
            wanted=f"more than {chance or 0:.1%}", fix="give a smaller --max-drop",
        )  # fmt: skip


def reach(trials: Trials) -> JsonObject:
    """The least floor that the holdout can prove at each of :data:`DISCORDANCES`, and the samples that the floor asked
    would need; for 0/1 records."""
    n, confidence, floor = trials.described["splits"]["holdout"], trials.goal.confidence, trials.max_drop
    rows = []
    for discordance in DISCORDANCES:
        least = proof.least_floor(n, discordance, confidence)
        needed = n if least <= floor else proof.samples_needed(floor, discordance, confidence)
        rows.append({"discordance": discordance, "least_floor": least, "samples_needed": needed})
    return {"n": n, "floor": floor, "rows": rows, "within_reach": rows[0]["least_floor"] <= floor}


def in_words(found: JsonObject) -> list[str]:
    """What :func:`reach` found, for people."""
    parts = [f"{row['least_floor']:.2%} at {row['discordance']:.0%}" for row in found["rows"]]
    lines = [f"{found['n']} holdout samples can prove a drop of {', '.join(parts)} discordance"]
    if not found["within_reach"]:
        need = found["rows"][0]["samples_needed"]
        lines.append(f"a floor of {found['floor']:.2%} is out of their reach: it needs {need} samples at the least")
    return lines


def left_out_in_words(described: JsonObject) -> list[str]:
    """Which pictures could not be used."""
    found = described["data"]["corrupt"]
    if not found["count"]:
        return []
    more = ["..."] if found["count"] > len(found["names"]) else []
    plural = "s were" if found["count"] > 1 else " was"
    return [f"{found['count']} picture{plural} left out: {'; '.join([*found['names'], *more])}"]


def samples_in_words(trials: Trials) -> list[str]:
    """What the original says of the first samples of search, beside their labels."""
    found = trials.worker.call("samples")
    labels = trials.described["labels"]

    def names(classes: list[int]) -> str:
        return ", ".join(labels[c] if c < len(labels) else str(c) for c in classes)

    if not found["predicted"]:
        return []
    return [f"first samples: the original says {names(found['predicted'])}", f"it should say {names(found['wanted'])}"]
