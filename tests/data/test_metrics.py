"""Records, decisions and the loss; agreement where there are no labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from laconic.core import Arrays
from laconic.data import from_arrays
from laconic.data.metrics import agreement, cross_entropy, top1, with_reference
from laconic.errors import DataError

OUTPUTS = {"output": np.array([[0.1, 0.9, 0.0], [2.0, 1.0, 2.0], [0.0, 0.0, 5.0]], np.float32)}


def test_top1_by_hand() -> None:
    metric = top1(0.4)
    records = metric.records(OUTPUTS, np.array([1, 2, 2]))
    assert records.tolist() == [1.0, 0.0, 1.0]
    assert records.dtype == np.float64
    assert metric.aggregate(records) == pytest.approx(2 / 3)
    assert metric.decide(OUTPUTS).tolist() == [1, 0, 2]
    assert (metric.name, metric.binary, metric.chance) == ("top1", True, 0.4)


def test_nan_never_scores() -> None:
    outputs = {"output": np.array([[np.nan, 1.0], [np.nan, np.nan], [1.0, 0.0]])}
    assert top1().records(outputs, np.array([0, 0, 0])).tolist() == [0.0, 0.0, 1.0]
    assert top1().decide(outputs).tolist() == [-1, -1, 0]


@pytest.mark.parametrize("target", [3, -1])
def test_a_label_outside_the_models_classes(target: int) -> None:
    with pytest.raises(DataError, match=rf"outside the model's classes: got {target}, wanted 0..2"):
        top1().records(OUTPUTS, np.array([0, target, 1]))


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 4, 2, 2)])
@pytest.mark.parametrize("metric", [top1(), agreement()])
def test_outputs_that_are_not_classes(shape: tuple[int, ...], metric: object) -> None:
    with pytest.raises(DataError, match=r"not what the task needs: got shape \(3.*wanted \(n, classes\)"):
        metric.records({"output": np.zeros(shape)}, np.zeros(3, int))  # type: ignore[attr-defined]


def test_several_outputs() -> None:
    with pytest.raises(DataError, match="got 2 outputs, wanted one"):
        top1().decide({"a": np.zeros((2, 3)), "b": np.zeros((2, 3))})


def test_another_number_of_outputs_than_samples() -> None:
    with pytest.raises(DataError, match="not one output per sample: got 3, wanted 2"):
        top1().records(OUTPUTS, np.array([0, 1]))


def test_cross_entropy_is_torchs_and_takes_one_output_in_any_wrapping() -> None:
    logits, targets = torch.tensor([[1.0, 2.0], [3.0, 0.5]], requires_grad=True), torch.tensor([1, 0])
    expected = -(torch.log_softmax(logits, 1)[torch.arange(2), targets]).mean()
    for outputs in (logits, (logits,), [logits], {"output": logits}):
        torch.testing.assert_close(cross_entropy(outputs, targets.int()), expected)
    cross_entropy(logits, targets).backward()
    assert logits.grad is not None
    with pytest.raises(DataError, match="got 2 outputs"):
        cross_entropy((logits, logits), targets)
    with pytest.raises(DataError, match=r"got shape \(2, 2, 1\)"):
        cross_entropy(logits[..., None], targets)


# ----------------------------------------------------------------------------------------------------------- reference


class Predict:
    """The class is the sign of the first value; counts its calls and remembers how long each was."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        x = inputs["input"]
        self.calls.append(len(x))
        return {"output": np.stack([-x[:, 0], x[:, 0]], axis=1)}


def unlabelled(n: int = 1200) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)


def test_an_unlabelled_task_has_no_targets_until_a_reference_gives_them() -> None:
    task = from_arrays(unlabelled())
    assert task.metric.name == "agreement"
    assert task.search.read([0]).targets is None
    assert task.loss is cross_entropy
    full = with_reference(task, Predict())
    for before, split in ((task.train, full.train), (task.search, full.search), (task.holdout, full.holdout)):
        assert len(before) == len(split)
        batch = split.read(range(len(split)))
        np.testing.assert_array_equal(batch.inputs["input"], before.read(range(len(split))).inputs["input"])
        assert batch.targets is not None
        np.testing.assert_array_equal(batch.targets, (batch.inputs["input"][:, 0] > 0).astype(int))
        assert full.metric.aggregate(full.metric.records(Predict()(batch.inputs), batch.targets)) == 1.0


def test_decisions_are_made_lazily_in_fixed_chunks_and_once() -> None:
    predict = Predict()
    task = with_reference(from_arrays(unlabelled()), predict)
    assert predict.calls == []
    task.train.read([300, 2])
    assert predict.calls == [256, 256]
    task.train.read([0, 511])
    assert predict.calls == [256, 256]
    task.train.read([599])
    assert predict.calls == [256, 256, 600 - 512]


def test_a_labelled_task_stays_as_it_is() -> None:
    task = from_arrays(unlabelled(60), np.arange(60) % 2)
    assert with_reference(task, Predict()) is task


def test_a_reference_that_gives_nan_is_refused() -> None:
    task = with_reference(from_arrays(unlabelled(60)), lambda inputs: {"o": np.full((len(inputs["input"]), 2), np.nan)})
    with pytest.raises(DataError, match="the original model gives NaN: got 10 of 10 samples"):
        task.search.read([0])


# --------------------------------------------------------------------------------------------------------------- score


def closeness(outputs: Arrays, targets: np.ndarray) -> np.ndarray:
    return np.exp(-np.abs(outputs["output"][:, 0] - targets))


def test_a_score_of_ones_own_takes_any_targets() -> None:
    x = unlabelled(60)
    task = from_arrays(x, x[:, 0] * 2.5, score=closeness, trainable=False)
    batch = task.search.read(range(5))
    assert batch.targets is not None
    records = task.metric.records({"output": batch.inputs["input"] * 2.5}, batch.targets)
    np.testing.assert_allclose(records, 1)
    assert (task.metric.name, task.metric.binary, task.loss) == ("closeness", False, None)
    with pytest.raises(DataError, match="the score closeness has no decisions"):
        task.metric.decide({"output": x})


def test_training_with_a_score_needs_a_loss() -> None:
    x = unlabelled(60)
    with pytest.raises(DataError, match="needs a loss; pass loss=, or trainable=False"):
        from_arrays(x, x[:, 0], score=closeness)

    def loss(outputs: object, targets: object) -> float:
        return 0.0

    assert from_arrays(x, x[:, 0], score=closeness, loss=loss).loss is loss


def test_a_score_without_targets_is_refused() -> None:
    with pytest.raises(DataError, match="needs targets"):
        from_arrays(unlabelled(60), score=closeness, trainable=False)


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.ones((3, 1)), r"wrong shape: got \(3, 1\), wanted \(3,\)"), (np.full(3, 1.5), "leaves 0..1: got 1.5 to 1.5")],
)
def test_a_score_that_breaks_its_promise(value: np.ndarray, message: str) -> None:
    x = unlabelled(60)
    task = from_arrays(x, x[:, 0], score=lambda outputs, targets: value, trainable=False)
    with pytest.raises(DataError, match=message):
        task.metric.records({"output": x[:3]}, x[:3, 0])
