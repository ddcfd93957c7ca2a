"""The machine's roof from times that are known."""

from __future__ import annotations

import time

import numpy as np
import pytest

from laconic.measure.roofline import bandwidth, peak


def test_peak_counts_the_undisturbed_calls() -> None:
    calls = iter([0.0, *[0.004] * 5, *[0.05] * 5])  # the first is not counted, the last five were disturbed

    def predictor(inputs: object) -> dict[str, object]:
        time.sleep(next(calls))
        return {}

    assert peak(predictor, {"x": np.zeros(1)}, operations=4e6, calls=10) == pytest.approx(1e9, rel=0.2)


@pytest.mark.parametrize("threads", [1, 2])
def test_bandwidth_counts_two_arrays_read_and_one_written(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**9, 1_000_000))  # each look at the clock is a millisecond later
    monkeypatch.setattr("time.perf_counter_ns", lambda: next(clock))
    found = bandwidth(threads, array_bytes=threads * 2**22, passes=1)
    assert found <= threads * 3 * 2**21 / 1e-3  # a thread's block in its own millisecond
    if threads == 1:
        assert found == pytest.approx(3 * 2**21 / 1e-3)
