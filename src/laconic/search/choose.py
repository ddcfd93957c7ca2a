"""Which of some trials is best, and which are worth showing to the holdout: pure functions of trials.

Latencies within 3 % and sizes within 1 % are ties. Of equal trials the smaller file wins, then the one that search
trusts more, then the recipe's hash.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from laconic.core import Goal, Trial

TIES = {"latency": 0.03, "size": 0.01, "macs": 0.01}
FRONT = 8
_STEP = 0.8  # of cost, from one fallback to the next
_BEYOND_DOUBT = 0.2  # of the level of the test


@dataclass(frozen=True)
class Judge:
    """A goal beside the original's trial; ``max_drop`` is the floor in the metric's own unit."""

    goal: Goal
    max_drop: float
    baseline: Trial

    def cost(self, trial: Trial) -> float:
        """What is minimised, over the original's: latency (paired), bytes, or MACs."""
        if self.goal.minimize == "latency":
            return 1 / trial.measurements["speedup"].value
        name = {"size": "file_bytes", "macs": "macs"}[self.goal.minimize]
        return trial.measurements[name].value / self.baseline.measurements[name].value

    def holds(self, trial: Trial) -> bool:
        """Whether the holdout would certify the trial if it looked like search."""
        drop = trial.measurements.get("expected_bound")
        return trial.error is None and drop is not None and drop.value <= self.max_drop

    def eligible(self, trial: Trial) -> bool:
        """Whether a trial may win at all: it was measured to the end, without noise where its latency counts, keeps the
        limits, and is an improvement on the original."""
        if trial.error or not trial.recipe.steps or "speedup" not in trial.measurements:
            return False
        if trial.rejected and (self.goal.minimize == "latency" or self.goal.max_latency is not None):
            return False
        return self.within_limits(trial) and self.cost(trial) < 1

    def within_limits(self, trial: Trial) -> bool:
        """Whether a trial keeps the latency and the size that the user allows."""
        mine, original = trial.measurements, self.baseline.measurements
        limits = (
            ("latency", "baseline_latency", self.goal.max_latency),
            ("file_bytes", "file_bytes", self.goal.max_size),
        )
        return all(
            limit is None or mine[name].value <= limit.against(original[reference].value)
            for name, reference, limit in limits
        )

    def passes(self, trial: Trial) -> bool:
        """Whether a trial may win and stands above the floor, as far as search tells."""
        return self.eligible(trial) and self.holds(trial)

    def best(self, trials: Sequence[Trial]) -> Trial | None:
        """The cheapest trial; among ties the smallest file, then the safest, then the first by the recipe's hash."""
        if not trials:
            return None
        least = min(self.cost(t) for t in trials)
        tied = [t for t in trials if self.cost(t) <= least * (1 + TIES[self.goal.minimize])]
        size = min(t.measurements["file_bytes"].value for t in tied)
        small = [t for t in tied if t.measurements["file_bytes"].value <= size * (1 + TIES["size"])]
        return min(small, key=lambda t: (_p(t), t.recipe.key))

    def improves(self, trial: Trial, on: Trial | None) -> bool:
        """Whether ``trial`` is better than ``on`` by more than a tie, or tied and smaller by more than a tie."""
        if on is None:
            return True
        tie = TIES[self.goal.minimize]
        ratio = self.cost(trial) / self.cost(on)
        if abs(ratio - 1) > tie:
            return ratio < 1
        size = trial.measurements["file_bytes"].value / on.measurements["file_bytes"].value
        return size < 1 - TIES["size"]

    def front(self, trials: Sequence[Trial]) -> list[Trial]:
        """At most eight trials for the holdout, the least compressed first.

        The holdout tests them in this order and stops at the first that fails. Of the trials that pass on search there
        are those that no other both undercuts and outsafes; and, to fall back on where search liked the cheapest by
        luck, the safest of each step of cost (a fifth), if it is beyond doubt. Behind them come, by their p-values, the
        ones that do not pass and are cheaper still.
        """
        able = sorted((t for t in trials if self.eligible(t)), key=lambda t: (_p(t), self.cost(t), t.recipe.key))
        passing = [t for t in able if self.passes(t)]
        steps: dict[int, Trial] = {}
        for trial in passing:
            if _p(trial) <= (1 - self.goal.confidence) * _BEYOND_DOUBT:
                steps.setdefault(math.floor(math.log(self.cost(trial), _STEP)), trial)
        line = [*self._undominated(passing), *steps.values()]
        front = sorted({t.key: t for t in line}.values(), key=lambda t: (-self.cost(t), _p(t)))[-FRONT:]
        least = min(map(self.cost, front), default=math.inf)
        return (front + [t for t in self._undominated(able) if not self.passes(t) and self.cost(t) < least])[:FRONT]

    def _undominated(self, by_safety: Sequence[Trial]) -> list[Trial]:
        """Of trials from the safest on, those that are cheaper than every safer one."""
        found: list[Trial] = []
        for trial in by_safety:
            if not found or self.cost(trial) < self.cost(found[-1]):
                found.append(trial)
        return found


def _p(trial: Trial) -> float:
    return trial.measurements["p_search"].value
