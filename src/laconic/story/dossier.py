"""Everything that a package's manifest, the report and ``--json`` say, gathered once, as JSON."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from laconic import __version__
from laconic.core import JsonObject, Recipe, Trial
from laconic.search.choose import Judge
from laconic.search.minimal import minimality
from laconic.search.policy import neighbours
from laconic.search.space import Space
from laconic.steps import STEPS
from laconic.story.certify import Verdict
from laconic.story.trials import Trials


def gather(
    trials: Trials,
    judge: Judge,
    winner: Trial,
    verdict: Verdict | None,
    reach: JsonObject,
    parts: Sequence[Trial] = (),
) -> JsonObject:
    """The dossier of a winner; without a ``verdict`` (the search is still running) its scores are those of search.
    ``parts`` are the winner's recipe up to each step but the last."""
    described = trials.described
    everyone = trials.all()
    final = trials.judged(_row(trials, winner.key), final=True)
    timed = final if "speedup" in final.measurements else winner
    scores = verdict.scores if verdict else {}
    timing = trials.latency_row(winner.key, final=True) or trials.latency_row(winner.key) or {}
    names = (
        *("model", "data", "metric", "splits", "calibration", "trainable", "labels", "preprocess"),
        *("inputs", "input_shape", "libraries", "machine", "seed", "keep"),
    )
    return {
        "laconic": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "status": "certified" if verdict and verdict.certified else "uncertified",
        "target": str(trials.target),
        "goal": {**asdict(trials.goal), "max_drop": judge.max_drop},
        **{name: described[name] for name in names},
        "reach": reach,
        "baseline": _numbers(trials, judge.baseline, timed, scores, baseline=True),
        "best": {**_numbers(trials, winner, timed, scores, baseline=False), "recipe": winner.recipe.to_json()},
        "recipe": winner.recipe.to_json(),
        "facts": list(winner.facts),
        "after_steps": [_trial(trials, judge, part, winner) for part in (*parts, winner)] if parts else [],
        "ratio": _ratio(trials, judge, winner, timed),
        "first_package_seconds": next((row["after"] for row in trials.ledger.of("package")), None),
        "timing": {name: timing.get(name) for name in ("drift", "clocks", "noisy", "calls_per_burst")},
        "certificate": verdict.certificate if verdict else None,
        "tested": verdict.tested if verdict else [],
        "minimality": _minimality(trials, judge, winner, everyone),
        "trials": [_trial(trials, judge, trial, winner) for trial in everyone],
    }


def summary(dossier: JsonObject, package: str, seconds: float) -> JsonObject:
    """The one object that ``shrink --json`` prints."""
    names = ("score", "file_bytes", "packed_bytes", "payload_bytes", "latency_ms", "macs", "params")
    baseline = {name: dossier["baseline"][name] for name in names}
    best = {**{name: dossier["best"][name] for name in names}, "recipe": dossier["best"]["recipe"]}
    stated = ("metric", "drop", "bound", "max_drop", "confidence", "n", "independent")
    certified = dossier["status"] == "certified"
    return {
        "schema": 1,
        "status": dossier["status"],
        "package": package,
        "target": dossier["target"],
        "seconds": round(seconds, 1),
        "trials": sum(bool(t["recipe"]) for t in dossier["trials"]),
        "baseline": baseline,
        "best": best,
        "ratio": dossier["ratio"],
        "certificate": {name: dossier["certificate"][name] for name in stated} if certified else None,
    }


def _row(trials: Trials, key: str) -> JsonObject:
    row = trials.ledger.find("trial", key=key) or trials.ledger.find("part", key=key)
    assert row is not None
    return row


def _numbers(trials: Trials, trial: Trial, timed: Trial, scores: dict[str, float], *, baseline: bool) -> JsonObject:
    m, row, packed = trial.measurements, _row(trials, trial.key), trials.packed(trial.key)
    latency = timed.measurements["baseline_latency" if baseline else "latency"]
    return {
        "key": trial.key,
        "score": scores.get(trial.key, m["score"].value),
        "search_score": m["score"].value,
        "file_bytes": int(m["file_bytes"].value),
        **{name: packed[name] for name in ("packed_bytes", "payload_bytes")},
        "latency_ms": latency.value,
        "macs": int(m["macs"].value),
        "params": int(m["params"].value),
        "unsupported": row["unsupported"],
        "layers": row["layers"],
        "operators": row["deployed"].get("operators", {}),
        "computed": row["deployed"].get("computed", []),
    }


def _ratio(trials: Trials, judge: Judge, winner: Trial, timed: Trial) -> JsonObject:
    speed = timed.measurements["speedup"]
    sizes = judge.baseline.measurements["file_bytes"].value / winner.measurements["file_bytes"].value
    latency = {"value": speed.value, "low": speed.low, "high": speed.high}
    packed = [trials.packed(key)["packed_bytes"] for key in (judge.baseline.key, winner.key)]
    return {"size": sizes, "packed": packed[0] / packed[1], "latency": latency, "only_stored": winner.only_stored}


def _trial(trials: Trials, judge: Judge, trial: Trial, winner: Trial) -> JsonObject:
    values = {name: [m.value, m.low, m.high] for name, m in trial.measurements.items()}
    return {
        "key": trial.key,
        "recipe": trial.recipe.to_json(),
        "label": str(trial.recipe),
        "chosen": trial.key == winner.key,
        "passes": bool(trial.recipe.steps) and judge.passes(trial),
        "rejected": trial.rejected,
        "error": trial.error,
        "seconds": trial.seconds,
        "measurements": values,
        "computed": _row(trials, trial.key).get("deployed", {}).get("computed", []),
        "only_stored": trial.only_stored,
    }


def _minimality(trials: Trials, judge: Judge, winner: Trial, everyone: list[Trial]) -> dict[str, list[str]]:
    space: Any = Space.of(trials.described)
    every = neighbours(winner.recipe, space, trials.goal, STEPS, trials.known_alignment)
    near = [recipe for recipe in every if recipe.key != Recipe().key]
    return minimality(winner, near, {t.recipe.key: t for t in everyone}, judge)
