"""Which of some trials is best, and which are worth showing to the holdout: pure functions of trials.

Latencies within 3 % and sizes within 1 % are ties. Of equal trials the smaller file wins, then the one that search
trusts more, then the recipe's hash.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from laconic.core import Trial
from laconic.goal import Goal
from laconic.search.line import best_line

TIES = {"latency": 0.03, "size": 0.01, "macs": 0.01}
FRONT = 8
_A_CERTIFICATE = 1.0  # is worth as much as a division of the cost by e
_LEAST_CHANCE = 1e-6
_LOW = 1.645  # a drop's low end lies so many standard errors below it


@dataclass(frozen=True)
class Judge:
    """A goal beside the original's trial; ``max_drop`` is the floor in the metric's own unit."""

    goal: Goal
    max_drop: float
    baseline: Trial

    @property
    def size_name(self) -> str:
        """The size that counts: of the form that the package keeps, packed where size is minimised."""
        return "packed_bytes" if self.goal.minimize == "size" else "file_bytes"

    def cost(self, trial: Trial) -> float:
        """What is minimised, over the original's: latency (paired), bytes, or MACs."""
        if self.goal.minimize == "latency":
            return 1 / trial.measurements["speedup"].value
        name = {"size": self.size_name, "macs": "macs"}[self.goal.minimize]
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
            (self.size_name, self.size_name, self.goal.max_size),
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
        size = min(t.measurements[self.size_name].value for t in tied)
        small = [t for t in tied if t.measurements[self.size_name].value <= size * (1 + TIES["size"])]
        return min(small, key=lambda t: (_p(t), t.recipe.key))

    def improves(self, trial: Trial, on: Trial | None) -> bool:
        """Whether ``trial`` is better than ``on`` by more than a tie, or tied and smaller by more than a tie."""
        if on is None:
            return True
        tie = TIES[self.goal.minimize]
        ratio = self.cost(trial) / self.cost(on)
        if abs(ratio - 1) > tie:
            return ratio < 1
        size = trial.measurements[self.size_name].value / on.measurements[self.size_name].value
        return size < 1 - TIES["size"]

    def front(self, trials: Sequence[Trial]) -> list[Trial]:
        """At most eight trials for the holdout, the least compressed first: of all such lines, the one to expect most
        of.

        The holdout tests a line in its order and stops at the first that fails: every trial in it is one to fall back
        on, and one to stumble over. A trial gains the logarithm of what it divides the cost by, and a certificate at
        all is a gain too.
        """
        line = sorted(filter(self.eligible, trials), key=lambda t: (-self.cost(t), _p(t), t.recipe.key))
        gains = [_A_CERTIFICATE - math.log(self.cost(t)) for t in line]
        return [line[i] for i in best_line(gains, [self._chance(t) for t in line], FRONT)]

    def _chance(self, trial: Trial) -> float:
        """How likely the holdout certifies a trial, given what search saw of it: both are samples, so the holdout's
        bound is spread around the expected one by the errors of both (normal)."""
        drop, bound = trial.measurements["drop"], trial.measurements["expected_bound"]
        error = max((drop.value - drop.low) / _LOW, 1 / drop.n)
        spread = error * math.sqrt(1 + drop.n / bound.n)
        return max(NormalDist(bound.value, spread).cdf(self.max_drop), _LEAST_CHANCE)


def _p(trial: Trial) -> float:
    return trial.measurements["p_search"].value
