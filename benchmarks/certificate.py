"""Does the certificate keep its word? Simulated searches, exact sizes and powers, reach, and time.

A simulated search has one to eight candidates, all with the same true drop. They are ordered by their p-value on the
search split and tested in that order on the holdout. Two gates:

- **size**: all candidates at a true drop equal to the floor; wrong certificates stay within the 99 % quantile of
  Binomial(searches, 5 %), which is 123 of 2,000;
- **power**: all at a quarter of the floor; at least 90 % of the searches certify a candidate.

Broken certificates go through the same gates, and each fails for one kind of records at least: the gates can fail.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from scipy import special, stats

from laconic.proof import bounded, fixed_sequence, least_floor, paired

Array = np.ndarray[Any, np.dtype[Any]]
Row = dict[str, Any]

SEED = 7
ALPHA = 0.05
N_SEARCH, N_HOLDOUT = 2000, 5000
SEARCHES, CANDIDATES = 2000, 8
FLOOR, POWER_WANTED = 0.01, 0.9  # one point, 90 %
RUNS = 20_000  # of the betting test, whose chances have no closed form
WRONG_ALLOWED = int(stats.binom.ppf(0.99, SEARCHES, ALPHA))

p_value = cache(paired.p_value)


@dataclass(frozen=True)
class World:
    """Where candidates come from: the baseline's accuracy, their true drop, the fraction of samples that differ."""

    accuracy: float
    drop: float
    discordance: float

    def draw(self, rng: np.random.Generator, searches: int, n: int) -> Array:
        """Counts (searches, candidates, 4): lost, won, right in both, wrong in both."""
        lost, won = (self.discordance + self.drop) / 2, (self.discordance - self.drop) / 2
        cells = [lost, won, self.accuracy - lost, 1 - self.accuracy - won]
        return rng.multinomial(n, cells, size=(searches, CANDIDATES))


def labelled(drop: float) -> World:
    """0/1 records against labels: the baseline errs too, and candidates win samples."""
    return World(accuracy=0.9, drop=drop, discordance=max(0.01, 2 * drop))


def agreement(drop: float) -> World:
    """Records without labels: agreement with the baseline, whose own record is always 1."""
    return World(accuracy=1.0, drop=drop, discordance=drop)


WORLDS = {"labelled": labelled, "agreement": agreement}
Certificate = Callable[[Array, Array], bool]
"""From counts on search and on holdout, each (candidates, 4), whether any candidate is certified."""


def _p_values(counts: Array) -> list[float]:
    n = int(counts[0].sum())
    return [p_value(int(lost), int(won), n, FLOOR) for lost, won, *_ in counts]


def _by_search(search: Array, holdout: Array) -> Array:
    return holdout[np.argsort(_p_values(search), kind="stable")]


def sound(search: Array, holdout: Array) -> bool:
    """What laconic does: the order from search, the fixed sequence on holdout."""
    return bool(fixed_sequence(_p_values(_by_search(search, holdout)), ALPHA))


def best_on_holdout(search: Array, holdout: Array) -> bool:
    """Broken: many candidates are tried on holdout as if it were one."""
    return min(_p_values(holdout)) <= ALPHA


def point_estimate(search: Array, holdout: Array) -> bool:
    """Broken: the observed drop, without a bound."""
    lost, won, right, wrong = _by_search(search, holdout)[0]
    return bool((lost - won) / (lost + won + right + wrong) < FLOOR)


def unpaired_wald(search: Array, holdout: Array) -> bool:
    """Broken: the normal bound for two accuracies as if they came from different samples."""
    lost, won, right, wrong = _by_search(search, holdout)[0]
    n = lost + won + right + wrong
    scores = np.array([right + lost, right + won]) / n
    bound = scores[0] - scores[1] + stats.norm.ppf(1 - ALPHA) * math.sqrt((scores * (1 - scores)).sum() / n)
    return bool(bound < FLOOR)


CERTIFICATES = {f.__name__: f for f in (sound, best_on_holdout, point_estimate, unpaired_wald)}


@dataclass(frozen=True)
class Gates:
    """How many searches certified wrongly (``wrong``), and which part rightly (``power``)."""

    wrong: int
    power: float

    @property
    def passes(self) -> bool:
        return self.wrong <= WRONG_ALLOWED and self.power >= POWER_WANTED


def simulate(certificate: Certificate, world: Callable[[float], World]) -> Gates:
    """Both gates; the same searches for every certificate."""
    rng = np.random.default_rng(SEED)
    certified = []
    for drop in (FLOOR, FLOOR / 4):
        counts = [world(drop).draw(rng, SEARCHES, n) for n in (N_SEARCH, N_HOLDOUT)]
        candidates = rng.integers(1, CANDIDATES + 1, size=SEARCHES)
        certified.append(sum(certificate(s[:k], h[:k]) for s, h, k in zip(*counts, candidates, strict=True)))
    return Gates(wrong=certified[0], power=certified[1] / SEARCHES)


def search_rows() -> list[Row]:
    rows = []
    for records, world in WORLDS.items():
        for name, certificate in CERTIFICATES.items():
            gates = simulate(certificate, world)
            facts = {"searches": SEARCHES, "wrong_allowed": WRONG_ALLOWED, **asdict(gates), "passes": gates.passes}
            rows.append({"table": "search", "records": records, "certificate": name, **facts})
    return rows


def most_lost(proves: Callable[[int, int], bool], wons: int) -> Array:
    """For each won below ``wons`` the largest lost that still proves the floor, or -1."""
    most, result = -1, []
    for won in range(wons):
        while proves(most + 1, won):
            most += 1
        result.append(most)
    return np.array(result)


def probability(most: Array, n: int, drop: float, discordance: float) -> float:
    """That lost is at most ``most`` of won, by summation."""
    p10, p01 = (discordance + drop) / 2, (discordance - drop) / 2
    won = np.arange(len(most))
    return float((stats.binom.pmf(won, n, p01) * stats.binom.cdf(most, n - won, p10 / (1 - p01))).sum())


def exact(n: int, floor: float, lost: int, won: int) -> bool:
    return p_value(lost, won, n, floor) <= ALPHA


def split(n: int, floor: float, lost: int, won: int) -> bool:
    """Clopper-Pearson for p10 from above and for p01 from below, half the error each."""
    least = special.betaincinv(won, n - won + 1, ALPHA / 2) if won else 0.0
    return bool(special.betaincinv(lost + 1, n - lost, 1 - ALPHA / 2) - least < floor)


def betting(n: int, floor: float, drop: float, discordance: float) -> float:
    """The chance that the betting test proves the floor, simulated on the same 0/1 records."""
    rng = np.random.default_rng(SEED)
    chances = [(discordance + drop) / 2, (discordance - drop) / 2, 1 - discordance]
    draws = (rng.choice([1.0, -1.0, 0.0], p=chances, size=n) for _ in range(RUNS))
    return sum(bounded.p_value(differences, floor) <= ALPHA for differences in draws) / RUNS


def size_rows() -> list[Row]:
    """The largest chance of a wrong proof over the nuisance, the discordance, at a true drop equal to the floor."""
    rows = []
    for n, floor, widest in ((1000, 0.02, 0.1), (5000, 0.003, 0.02), (5000, 0.01, 0.06)):
        wons = int(stats.binom.isf(1e-9, n, (widest - floor) / 2)) + 1
        most = most_lost(partial(exact, n, floor), wons)
        row = {"table": "size", "n": n, "floor": floor, "discordance_up_to": widest, "betting_runs": RUNS}
        sizes = [probability(most, n, floor, discordance) for discordance in np.linspace(floor, widest, 300)]
        simulated = [betting(n, floor, floor, discordance) for discordance in np.linspace(floor, widest, 4)]
        rows.append({**row, "exact": max(sizes), "betting": max(simulated)})
    return rows


def power_rows() -> list[Row]:
    """The chance to prove the floor: the exact test, Clopper-Pearson twice, betting."""
    rows = []
    for n, floor, drop, discordance in (
        (5000, 0.003, 0.0005, 0.003),
        (5000, 0.01, 0.0025, 0.01),
        (2000, 0.01, 0, 0.01),
    ):
        wons = int(stats.binom.isf(1e-9, n, (discordance - drop) / 2)) + 1
        row: Row = {"table": "power", "n": n, "floor": floor, "drop": drop, "discordance": discordance}
        for test in (exact, split):
            row[test.__name__] = probability(most_lost(partial(test, n, floor), wons), n, drop, discordance)
        rows.append({**row, "betting": betting(n, floor, drop, discordance)})
    return rows


def reach_rows() -> list[Row]:
    return [
        {"table": "reach", "n": n, "discordance": d, "least_floor": least_floor(n, d, 1 - ALPHA)}
        for n in (500, 1000, 2000, 5000, 10_000, 50_000)
        for d in (0.0, 0.01, 0.04)
    ]


def time_rows() -> list[Row]:
    """Median process-CPU time of a call on an outcome not seen before; the p-value at the floor where it is 5 %."""
    rows = []
    for n in (1000, 10_000, 100_000):
        for discordance in (0.01, 0.04, 0.25):
            pairs = round(n * discordance / 2)
            clocks = []
            for lost in range(pairs, pairs + 5):
                start = time.process_time_ns()
                bound = paired.upper_bound(lost, pairs, n, 1 - ALPHA)
                between = time.process_time_ns()
                paired.p_value(lost, pairs + 1, n, bound)
                clocks.append((time.process_time_ns() - between, between - start))
            p_value_ms, upper_bound_ms = (np.median(clocks, axis=0) / 1e6).tolist()
            row = {"table": "time", "n": n, "discordance": discordance}
            rows.append({**row, "p_value_ms": p_value_ms, "upper_bound_ms": upper_bound_ms})
    return rows


def main(out: Path) -> Row:
    """Write ``certificate.json`` into the folder ``out``."""
    rows = [*search_rows(), *size_rows(), *power_rows(), *reach_rows(), *time_rows()]
    versions = f"Python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}"
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, {versions}"
    record = {"benchmark": "certificate", "machine": machine, "seed": SEED, "rows": rows}
    out.mkdir(exist_ok=True)
    (out / "certificate.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


if __name__ == "__main__":
    for result in main(Path(__file__).parent / "records")["rows"]:
        print(result)
