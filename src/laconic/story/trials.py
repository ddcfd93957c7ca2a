"""Recipes in, judged trials out: the ledger is asked first, the worker only for what it does not hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from laconic import proof
from laconic.core import JsonObject, Measurement, Recipe, Target, Trial, digest
from laconic.errors import TrialError
from laconic.goal import Goal
from laconic.ledger import Ledger
from laconic.report.words import only_stored
from laconic.search.tools import BudgetSpentError, Tools
from laconic.steps import STEPS
from laconic.story.evaluate import trial_key
from laconic.story.reporter import Reporter
from laconic.worker import InternalError, Worker

Vector = np.ndarray[Any, np.dtype[np.float64]]

ROUNDS = 25
FINAL_ROUNDS = 75
_LEAST_LIMIT_S = 20.0


@dataclass
class Trials:
    """The trials of one search on one machine; every method leaves the ledger complete up to what it returned."""

    ledger: Ledger
    worker: Worker
    target: Target
    described: JsonObject
    goal: Goal
    reporter: Reporter
    files: Path

    def evaluate(self, recipe: Recipe) -> Trial:
        """The judged trial of ``recipe``; raises :class:`BudgetSpentError` where it would need a new row after the
        budget has ended."""
        key = self.key(recipe)
        if self.ledger.find("trial", key=key) is None:
            self.check_budget()
        return self.measure(recipe)

    def measure(self, recipe: Recipe) -> Trial:
        """The judged trial of ``recipe``, whatever is left of the budget."""
        key = self.key(recipe)
        row = self.ledger.find("trial", key=key)
        if row is None:
            self._announce(str(recipe))
            row = self._run(recipe, key)
            self.ledger.append(row)
        trial = self._timed(row)
        self.reporter.tried(trial)
        return trial

    def part(self, recipe: Recipe) -> Trial:
        """The beginning of a chosen recipe, to tell what each step gave: no candidate, so in rows of another kind."""
        key = self.key(recipe)
        row = self.ledger.find("trial", key=key) or self.ledger.find("part", key=key)
        if row is None:
            row = {**self._run(recipe, key), "row": "part"}
            self.ledger.append(row)
        return self._timed(row)

    def _timed(self, row: JsonObject) -> Trial:
        key = row["key"]
        if row["error"] is None and row["rejected"] is None and self.latency_row(key) is None:
            self.time(key, ROUNDS)
        return self.judged(row)

    def _run(self, recipe: Recipe, key: str) -> JsonObject:
        baseline = self.baseline_records if recipe.steps else np.empty(0)
        floor = self.max_drop if recipe.steps else 1.0
        limit, progress, began = self._time_limit(), self.reporter.progress, time.monotonic()
        try:
            row: JsonObject = self.worker.call(
                "trial", recipe.to_json(), key, baseline.tolist(), floor, progress=progress, seconds=limit
            )
        except (TrialError, InternalError) as error:
            if not recipe.steps:
                raise
            failed = {"row": "trial", "key": key, "recipe": recipe.to_json(), "target": str(self.target)}
            seconds = round(time.monotonic() - began, 3)
            return {**failed, "rejected": None, "error": str(error), "kind": type(error).__name__, "seconds": seconds}
        return row

    def _time_limit(self) -> float | None:
        """A trial may take what is left of the budget and a third of the whole again, then it is stopped."""
        if self.goal.budget.seconds is None:
            return None
        return max(_LEAST_LIMIT_S, self.goal.budget.seconds * 4 / 3 - self.spent_seconds)

    def time(self, key: str, rounds: int) -> JsonObject:
        """Time a trial's file against the baseline's, and note it."""
        row: JsonObject = self.worker.call("latency", key, rounds, progress=self.reporter.progress)
        row["final"] = rounds == FINAL_ROUNDS  # the policy reads only the others: it must not see what came after it
        self.ledger.append(row)
        return row

    def probe(self, recipe: Recipe) -> float | None:
        """The damage of a recipe on the calibration samples, or None where it cannot be applied."""
        key = self.key(recipe)
        row = self.ledger.find("probe", key=key)
        if row is None:
            self.check_budget()
            self._announce(f"sensitivity to {recipe}")
            row = self.worker.call("probe", recipe.to_json(), key, progress=self.reporter.progress)
            self.ledger.append(row)
        damage: float | None = row["damage"]
        return damage

    def exchange(self, recipes: Mapping[int, Recipe], base: int) -> dict[str, dict[int, float]]:
        """The damage of the network of ``recipes[base]`` with a single layer of another recipe's, by layer and number
        of the recipe; those that cannot be applied are missing."""
        key = digest([base, *((number, self.key(recipe)) for number, recipe in recipes.items())])
        row = self.ledger.find("probe", key=key)
        if row is None:
            self.check_budget()
            self._announce("the layers' sensitivities")
            rows = {str(number): recipe.to_json() for number, recipe in recipes.items()}
            row = self.worker.call("exchange", rows, str(base), key, progress=self.reporter.progress)
            self.ledger.append(row)
        return {name: {int(n): d for n, d in of_layer.items()} for name, of_layer in row["damages"].items()}

    def packed(self, key: str) -> JsonObject:
        """The bytes of a trial's file as ``.lac``: ``packed_bytes`` in all, ``payload_bytes`` of them weights."""
        row = self.ledger.find("packed", key=key)
        if row is None:
            from laconic.pack import container  # it brings a compiler

            trial = self.ledger.find("trial", key=key) or self.ledger.find("part", key=key)
            assert trial is not None
            self.worker.call("rebuild", trial["recipe"], key, progress=self.reporter.progress)
            self.reporter.progress("packing", 0.0)
            began = time.monotonic()
            found = container.pack_file(next(self.files.glob(f"{key}.*")))
            sizes = {"packed_bytes": len(found.content), "payload_bytes": found.payload}
            row = {"row": "packed", "key": key, **sizes, "seconds": round(time.monotonic() - began, 3)}
            self.ledger.append(row)
        return row

    def layer_times(self, recipe: Recipe) -> dict[str, float]:
        """Milliseconds in each layer of a recipe's file; ``recipe`` was evaluated before."""
        key = self.key(recipe)
        row = self.ledger.find("profile", key=key, machine=self.described["machine_key"])
        if row is None:
            row = self.worker.call("profile", key, progress=self.reporter.progress)
            self.ledger.append(row)
        return dict(row["layers"])

    def alignment(self, recipe: Recipe) -> int:
        """The multiple to which the target's kernels fill channels up, in the arithmetic of these steps."""
        key = f"{self._alignments}{recipe}"
        row = self.ledger.find("probe", key=key, machine=self.described["machine_key"])
        if row is None:
            row = self.worker.call("alignment", recipe.to_json(), key, progress=self.reporter.progress)
            self.ledger.append(row)
            if row["alignment"] > 1:
                self.reporter.note(f"measured: {self.target} runs channels in blocks of {row['alignment']}")
        return int(row["alignment"])

    @property
    def known_alignment(self) -> int:
        """What :meth:`alignment` said here last; 1 where it was not asked, or where the time does not count: a ledger
        may also hold another goal's search."""
        here = self.described["machine_key"]
        rows = [r for r in self.ledger.of("probe") if r["key"].startswith(self._alignments) and r["machine"] == here]
        return int(rows[-1]["alignment"]) if rows and self.goal.minimize == "latency" else 1

    @property
    def _alignments(self) -> str:
        return f"alignment of {self.target} after "

    def seconds_per_sample(self) -> float:
        """What training the original costs, measured once."""
        row = self.ledger.find("probe", key="training")
        if row is None:
            row = self.worker.call("probe_training", progress=self.reporter.progress)
            self.ledger.append(row)
        return float(row["seconds_per_sample"])

    def tools(self, evaluate: Callable[[Recipe], Trial]) -> Tools:
        """What a search works with; ``evaluate`` is :meth:`evaluate`, or calls it."""
        measured = (self.probe, self.exchange, self.layer_times, self.alignment, self.seconds_per_sample)
        return Tools(STEPS, evaluate, *measured)

    # ---------------------------------------------------------------------------------------------------------- budget

    @property
    def spent_seconds(self) -> float:
        """The work of this job that the ledger holds, in seconds."""
        probes = (row for row in self.ledger.of("probe") if "recipe" not in row or row["key"] == self._key_of(row))
        keys = {row["key"] for row in (*self._rows(), *probes)}
        return float(sum(row.get("seconds", 0.0) for row in self.ledger.rows if row.get("key") in keys))

    def _announce(self, text: str) -> None:
        budget = self.goal.budget
        seconds = None if budget.seconds is None else budget.seconds - self.spent_seconds
        self.reporter.trying(text, seconds, None if budget.trials is None else budget.trials - self.count)

    @property
    def count(self) -> int:
        """The trials that were made, the original not counted."""
        return sum(bool(row["recipe"]) for row in self._rows())

    def check_budget(self) -> None:
        budget = self.goal.budget
        out_of_time = budget.seconds is not None and self.spent_seconds >= budget.seconds
        if out_of_time or (budget.trials is not None and self.count >= budget.trials):
            raise BudgetSpentError

    # --------------------------------------------------------------------------------------------------------- judging

    def key(self, recipe: Recipe) -> str:
        return trial_key(self.described, recipe, self.target)

    @property
    def baseline_key(self) -> str:
        return self.key(Recipe())

    @property
    def baseline_row(self) -> JsonObject:
        row = self.ledger.find("trial", key=self.baseline_key)
        assert row is not None, "the baseline is the first trial"
        return row

    @property
    def baseline_records(self) -> Vector:
        return unpack(self.baseline_row["records"])

    @property
    def max_drop(self) -> float:
        """The floor as a drop in the metric's own unit; a relative one is taken of the baseline's score on search."""
        labelled = self.described["data"]["labelled"]
        drop = self.goal.max_drop if self.goal.max_drop is not None else (0.01 if labelled else 0.05)
        return drop * float(self.baseline_row["score"]) if self.goal.relative else drop

    def all(self) -> list[Trial]:
        """Every trial of this job, judged, in the order in which they were made."""
        return [self.judged(row) for row in self._rows()]

    def _rows(self) -> list[JsonObject]:
        """The trial rows of this job: a ledger may also hold those of another target, of another --keep, or of other
        versions of the libraries."""
        return [row for row in self.ledger.of("trial") if row["key"] == self._key_of(row)]

    def _key_of(self, row: JsonObject) -> str:
        return self.key(Recipe.parse(row["recipe"], _steps()))

    def judged(self, row: JsonObject, final: bool = False) -> Trial:
        """A ledger row with what follows from it: drops with their bounds, latencies with their intervals. ``final``
        takes the timing that was made after selection."""
        measurements = dict(_of_file(row)) if row["error"] is None else {}
        latency = self.latency_row(row["key"], final)
        if row["error"] is None and row["rejected"] is None:
            measurements |= dict(self._of_records(row))
        if latency is not None:
            measurements |= dict(_of_time(latency))
        if self.goal.minimize == "size" and row["error"] is None and row["rejected"] is None:
            value = float(self.packed(row["key"])["packed_bytes"])
            measurements["packed_bytes"] = Measurement("packed_bytes", "bytes", value, value, value, 1, "measured")
        noisy = "its timing stayed noisy" if latency is not None and latency["noisy"] and not final else None
        return Trial(
            key=row["key"],
            recipe=Recipe.parse(row["recipe"], _steps()),
            target=self.target,
            facts=tuple(row.get("facts", ())),
            measurements=measurements,
            records=tuple(unpack(row.get("records", ""))),
            rejected=row["rejected"] or noisy,
            error=row["error"],
            seconds=row["seconds"],
            only_stored=self._only_stored(row),
        )

    def _only_stored(self, row: JsonObject) -> bool:
        formats = row.get("deployed", {}).get("computed", [])
        return only_stored(formats) and row["macs"] == self.baseline_row["macs"]

    def _of_records(self, row: JsonObject) -> Iterator[tuple[str, Measurement]]:
        baseline, mine = self.baseline_records, unpack(row["records"])
        binary, confidence = self.described["metric"]["binary"], self.goal.confidence
        drop, high = proof.bound_drop(baseline, mine, confidence, binary)
        n, holdout = len(mine), self.described["splits"]["holdout"]
        low = drop - 1.645 * float((baseline - mine).std()) / n**0.5  # normal: only says which trials are hopeless
        yield "drop", Measurement("drop", "", drop, low, high, n, "measured")
        if binary:
            expected = proof.expected_bound(*proof.count_flips(baseline, mine), n, holdout, confidence)
        else:
            _, expected = proof.bound_drop(np.resize(baseline, holdout), np.resize(mine, holdout), confidence, binary)
        yield "expected_bound", Measurement("expected_bound", "", expected, expected, expected, holdout, "modelled")
        p = proof.doubt_floor(baseline, mine, self.max_drop, binary)
        yield "p_search", Measurement("p_search", "", p, p, p, n, "measured")

    def latency_row(self, key: str, final: bool = False) -> JsonObject | None:
        """The last timing of a trial on this machine, of the kind asked for."""
        return next(reversed(self.timings(key, final)), None)

    def timings(self, key: str, final: bool = False) -> list[JsonObject]:
        """All timings of a trial on this machine, of the kind asked for: more than one where the machine was busy."""
        wanted = {"key": key, "machine": self.described["machine_key"], "final": final}
        return [row for row in self.ledger.of("latency") if all(row[name] == value for name, value in wanted.items())]


def _of_file(row: JsonObject) -> Iterator[tuple[str, Measurement]]:
    for name, unit in (("file_bytes", "bytes"), ("params", ""), ("macs", "")):
        value = float(row[name])
        yield name, Measurement(name, unit, value, value, value, 1, "measured")
    score, n = float(row["score"]), len(row["records"])
    yield "score", Measurement("score", "", score, score, score, n, "measured")


def _of_time(row: JsonObject) -> Iterator[tuple[str, Measurement]]:
    raw = row["raw"]
    times = {"latency": raw["candidate_ms"], "baseline_latency": [*raw["before_ms"], *raw["after_ms"]]}
    for name, unit, values in (("speedup", "", row["wall_ratio"]), *((n, "ms", v) for n, v in times.items())):
        middle, low, high = proof.median_interval(np.array(values))
        yield name, Measurement(name, unit, middle, low, high, len(values), "measured")


def unpack(records: str | list[float]) -> Vector:
    """The records that :func:`laconic.story.evaluate.pack_records` packed."""
    if isinstance(records, str):
        return np.frombuffer(records.encode(), np.uint8).astype(np.float64) - ord("0")
    return np.asarray(records, np.float64)


def _steps() -> Any:
    from laconic.steps import STEPS  # torch comes with it

    return STEPS
