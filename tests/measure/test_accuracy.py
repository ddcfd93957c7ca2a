"""Records of a predictor on a split: one per sample, in order, and no more than asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from laconic.core import Metric
from laconic.errors import DataError
from laconic.measure import records
from laconic.measure.accuracy import chunks
from tests.networks import TOP1, Rows


def rows(n: int, labels: bool = True) -> Rows:
    """Sample i holds i; its label is i % 3."""
    return Rows({"x": np.arange(float(n))[:, None]}, np.arange(n) % 3 if labels else None)


def predictor(inputs: Any) -> dict[str, Any]:
    """Right for the even samples."""
    x = inputs["x"][:, 0].astype(int)
    decided = np.where(x % 2 == 0, x % 3, (x + 1) % 3)
    return {"logits": np.eye(3)[decided]}


@pytest.mark.parametrize("n", [1, 63, 64, 65, 200])
def test_one_record_per_sample_in_order(n: int) -> None:
    found = records(predictor, rows(n), TOP1)
    assert found.dtype == np.float64
    assert found.tolist() == [float(i % 2 == 0) for i in range(n)]


def test_no_samples_no_records() -> None:
    assert records(predictor, rows(0), TOP1).shape == (0,)


def test_it_stops_when_enough_was_seen() -> None:
    seen: list[int] = []

    def stop(found: Any) -> bool:
        seen.append(len(found))
        return len(found) >= 128

    found = records(predictor, rows(500), TOP1, stop=stop)
    assert seen == [64, 128]
    assert found.tolist() == [float(i % 2 == 0) for i in range(128)]


def test_without_a_reason_it_goes_on() -> None:
    assert len(records(predictor, rows(200), TOP1, stop=lambda found: False)) == 200


def test_progress() -> None:
    told: list[float] = []
    records(predictor, rows(160), TOP1, progress=told.append)
    assert told == [64 / 160, 128 / 160, 1.0]


def test_without_labels() -> None:
    with pytest.raises(DataError, match="these samples have no labels; score them by agreement"):
        records(predictor, rows(10, labels=False), TOP1)


def test_the_metric_sees_outputs_and_targets_of_the_same_samples() -> None:
    def score(outputs: Any, targets: Any) -> Any:
        assert len(outputs["y"]) == len(targets)
        return (outputs["y"] % 3 == targets).astype(np.float32)

    metric = Metric("mine", score, lambda o: o["y"], lambda r: float(np.mean(r)), binary=False)
    found = records(lambda inputs: {"y": inputs["x"][:, 0]}, rows(100), metric)
    assert found.tolist() == [1.0] * 100


@pytest.mark.parametrize(("n", "size", "wanted"), [(0, 4, []), (3, 4, [3]), (4, 4, [4]), (9, 4, [4, 4, 1])])
def test_chunks(n: int, size: int, wanted: list[int]) -> None:
    found = chunks(n, size)
    assert [len(chunk) for chunk in found] == wanted
    assert [i for chunk in found for i in chunk] == list(range(n))
