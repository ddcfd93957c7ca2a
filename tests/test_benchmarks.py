"""What the benchmarks make of their measurements: who is the best peer, and by how much it was beaten, at least."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks.peers import _real, _stored
from benchmarks.quantization import less, summary


def test_less_is_paired_and_its_bound_exact() -> None:
    peer, mine = np.ones(1000), np.ones(1000)
    peer[:20], mine[15:25] = 0, 0  # lost 20..24, won 0..14
    found = less(mine, peer)
    assert (found["lost"], found["won"]) == (5, 15)
    assert found["difference"] == pytest.approx(0.01)
    assert -0.003 < found["difference_low"] <= 0
    assert found["p_no_better"] == pytest.approx(binom.sf(14, 20, 0.5))
    assert less(peer, mine)["difference_low"] < -0.01


def test_summary_is_of_the_best_and_of_the_fastest_peer() -> None:
    def peer(name: str, agreement: float, over: float) -> dict[str, object]:
        gap = {"difference": 0.9 - agreement}
        return {"name": name, "agreement": agreement, "laconic_less_peer": gap, "laconic_over_peer": {"value": over}}

    keys = ("network", "target", "n", "top1", "file_bytes", "speed_to_float", "seconds")
    mine = {"name": "laconic", "agreement": 0.9, **dict.fromkeys(keys)}
    broken = {"name": "broken", "failed": "Error: no"}
    (found,) = summary([mine, peer("best", 0.95, 1.2), peer("fastest", 0.8, 0.98), broken])
    assert (found["best_peer"], found["fastest_peer"]) == ("best", "fastest")
    assert found["difference"] == pytest.approx(-0.05)
    assert found["laconic_over_peer"]["value"] == 0.98
    assert summary([mine, broken]) == []


def test_foreign_integers_are_the_codes_of_their_scale_and_zero_point() -> None:
    tensor = {"quantization": (0.5, -3), "dtype": np.int8}
    x = np.array([[-100.0, -1.0, 0.0, 0.8, 100.0]], np.float32)
    assert _stored(x, tensor).tolist() == [[-128, -5, -3, -1, 127]]
    assert _real(_stored(x, tensor), tensor).tolist() == [[-62.5, -1.0, 0.0, 1.0, 65.0]]
    assert _stored(x, {"quantization": (0.0, 0), "dtype": np.float32}).dtype == np.float32
