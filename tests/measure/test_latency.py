"""Latency with clocks that the test moves: ratios, drift and attempts come out as they were put in."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from laconic.measure import latency
from laconic.measure.latency import DRIFT, Paired, distribution, paired

INPUTS = {"x": np.zeros((1, 1))}


class Clock:
    """Two clocks in nanoseconds; ``work`` moves both, ``wait`` the wall's alone."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0

    def work(self, ms: float) -> None:
        self.wall += round(ms * 1e6)
        self.cpu += round(ms * 1e6)

    def wait(self, ms: float) -> None:
        self.wall += round(ms * 1e6)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(latency.time, "perf_counter_ns", lambda: made.wall)
    monkeypatch.setattr(latency.time, "process_time_ns", lambda: made.cpu)
    return made


def takes(clock: Clock, ms: float | Callable[[int], float]) -> Any:
    """A predictor that works so long, or as long as ``ms`` says of the number of calls before."""
    calls = 0

    def predictor(inputs: Any) -> dict[str, Any]:
        nonlocal calls
        assert inputs is INPUTS
        clock.work(ms(calls) if callable(ms) else ms)
        calls += 1
        predictor.calls = calls  # type: ignore[attr-defined]
        return {}

    return predictor


def no_pause(seconds: float) -> None:
    raise AssertionError("a quiet machine needs no second attempt")


@pytest.mark.parametrize(("baseline", "candidate"), [(1.0, 0.5), (1.0, 2.0), (0.01, 0.003), (20.0, 5.0), (1.0, 1.0)])
def test_the_ratio_is_baseline_over_candidate(clock: Clock, baseline: float, candidate: float) -> None:
    found = paired(takes(clock, baseline), takes(clock, candidate), INPUTS, rounds=7, pause=no_pause)
    assert found.before_ms == pytest.approx(np.full(7, baseline))
    assert found.candidate_ms == pytest.approx(np.full(7, candidate))
    assert found.after_ms == pytest.approx(np.full(7, baseline))
    assert found.wall_ratio == pytest.approx(np.full(7, baseline / candidate))
    assert found.cpu_ratio == pytest.approx(np.full(7, baseline / candidate))
    assert (found.drift, found.clocks) == (pytest.approx(1), pytest.approx(1))
    assert not found.noisy


@pytest.mark.parametrize(("ms", "calls"), [(0.01, 400), (1.0, 4), (3.9, 2), (50.0, 1)])
def test_a_burst_takes_a_few_milliseconds(clock: Clock, ms: float, calls: int) -> None:
    assert paired(takes(clock, ms), takes(clock, ms), INPUTS, rounds=2).calls_per_burst == calls


def test_baseline_and_candidate_take_turns() -> None:
    order: list[str] = []
    latency._attempt(
        lambda inputs: order.append("A") or {}, lambda inputs: order.append("B") or {}, INPUTS, rounds=3, calls=1
    )
    turns = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert "".join(turns).endswith("ABABABA"), "each burst follows one of the other kind"


def test_a_ratio_is_taken_inside_a_round(clock: Clock) -> None:
    """The machine becomes three times slower half way; the ratio does not."""
    slow = {"factor": 1.0}

    def at(ms: float) -> Callable[[int], float]:
        def now(call: int) -> float:
            if clock.wall > 200e6:
                slow["factor"] = 3.0
            return ms * slow["factor"]

        return now

    found = paired(takes(clock, at(1.0)), takes(clock, at(0.5)), INPUTS, rounds=40, pause=lambda s: None)
    assert found.before_ms.max() > 2.9 * found.before_ms.min()
    assert np.median(found.wall_ratio) == pytest.approx(2.0)
    assert ((found.wall_ratio > 1.9) & (found.wall_ratio < 2.1)).mean() > 0.9


def test_drift_is_noise_and_is_tried_again(clock: Clock) -> None:
    pauses: list[float] = []
    baseline = takes(clock, lambda call: 1.01**call)  # slower with every call
    found = paired(baseline, takes(clock, 0.5), INPUTS, rounds=5, pause=pauses.append)
    assert found.drift > 1 + DRIFT
    assert found.wall_ratio == pytest.approx((found.before_ms + found.after_ms) / 2 / found.candidate_ms)
    assert found.noisy
    assert len(pauses) == 2, "three attempts"
    assert pauses == sorted(pauses)
    assert all(seconds > 0 for seconds in pauses)


def test_clocks_that_disagree_are_noise(clock: Clock) -> None:
    def candidate(inputs: Any) -> dict[str, Any]:
        clock.work(0.5)
        clock.wait(0.25)  # somebody else was working
        return {}

    found = paired(takes(clock, 1.0), candidate, INPUTS, rounds=5, pause=lambda s: None)
    assert found.wall_ratio == pytest.approx(np.full(5, 1 / 0.75))
    assert found.cpu_ratio == pytest.approx(np.full(5, 2.0))
    assert found.clocks == pytest.approx(1.5)
    assert found.noisy


def test_the_first_quiet_attempt_counts(clock: Clock) -> None:
    noisy = {"now": True}

    def candidate(inputs: Any) -> dict[str, Any]:
        clock.work(0.5)
        if noisy["now"]:
            clock.wait(0.5)
        return {}

    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        noisy["now"] = False

    found = paired(takes(clock, 1.0), candidate, INPUTS, rounds=5, pause=pause)
    assert not found.noisy
    assert found.wall_ratio == pytest.approx(np.full(5, 2.0))
    assert len(pauses) == 1


def test_of_noisy_attempts_the_least_noisy_counts(clock: Clock) -> None:
    disturbance = iter([0.5, 0.1, 0.3])
    now = {"ms": next(disturbance)}

    def candidate(inputs: Any) -> dict[str, Any]:
        clock.work(0.5)
        clock.wait(now["ms"])
        return {}

    def pause(seconds: float) -> None:
        now["ms"] = next(disturbance)

    found = paired(takes(clock, 1.0), candidate, INPUTS, rounds=5, pause=pause)
    assert found.noisy
    assert found.candidate_ms == pytest.approx(np.full(5, 0.6))


@pytest.mark.parametrize(
    ("after", "cpu", "noisy"),
    [
        (1.0, 2.0, False),
        (1.029, 2.0, False),
        (1.031, 2.0, True),
        (0.969, 2.0, True),
        (1.0, 2.05, False),
        (1.0, 2.07, True),
    ],
)
def test_how_much_is_noise(after: float, cpu: float, noisy: bool) -> None:
    ones = np.ones(3)
    assert Paired(ones, ones / 2, ones * after, ones * 2, ones * cpu, 1).noisy is noisy


def test_single_calls(clock: Clock) -> None:
    times = iter([1.0, 9.0] * 200)
    found = distribution(takes(clock, lambda call: next(times)), INPUTS, calls=50)
    assert len(found) == 50
    assert set(np.round(found, 6)) <= {1.0, 9.0}


def test_no_garbage_is_collected_while_the_clock_runs(clock: Clock) -> None:
    states: list[bool] = []

    def watch(inputs: Any) -> dict[str, Any]:
        states.append(gc.isenabled())
        clock.work(10.0)
        return {}

    assert gc.isenabled()
    paired(watch, watch, INPUTS, rounds=2)
    assert not any(states[-6:])
    assert gc.isenabled()

    def fails(inputs: Any) -> dict[str, Any]:
        if not gc.isenabled():
            raise RuntimeError("in the middle")
        clock.work(1.0)
        return {}

    with pytest.raises(RuntimeError, match="in the middle"):
        distribution(fails, INPUTS)
    assert gc.isenabled(), "also after an error"


def test_it_warms_up(clock: Clock) -> None:
    """The first calls of both are fifty times slower; none of them is counted."""
    baseline, candidate = (takes(clock, lambda call, ms=ms: ms * (50 if call < 2 else 1)) for ms in (1.0, 0.5))
    found = paired(baseline, candidate, INPUTS, rounds=3, pause=no_pause)
    assert found.wall_ratio == pytest.approx(np.full(3, 2.0))


@pytest.fixture
def real() -> Callable[[float], Any]:
    """Predictors that really work for so many milliseconds."""
    from time import process_time_ns

    def make(ms: float) -> Any:
        def predictor(inputs: Any) -> dict[str, Any]:
            end = process_time_ns() + ms * 1e6
            while process_time_ns() < end:
                pass
            return {}

        return predictor

    return make


def test_on_real_clocks(real: Callable[[float], Any]) -> None:
    found = paired(real(0.4), real(0.2), INPUTS, rounds=9, pause=lambda seconds: None)
    assert np.median(found.cpu_ratio) == pytest.approx(2.0, rel=0.15)
