"""LSQ: the paper's gradients, scales that follow them, and nothing that changes when the training ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Recipe, Target, Task
from laconic.errors import RecipeError, TrialError
from laconic.fake_quantize import PER_TENSOR, FakeQuantize, attached, weight_quantizer
from laconic.runtime import onnxruntime
from laconic.runtime.difference import relative_error
from laconic.steps.quantize.lsq import LSQ, _LearnedScale, learning
from laconic.steps.quantize.post_training import Quantize
from laconic.steps.quantize.weights import QuantizeWeights
from laconic.steps.train.fine_tune import FineTune
from laconic.steps.train.fit import Schedule, fit
from tests.networks import context, inputs_of, network, task_for, tensors

LOW = Quantize(bits=2, weight_ranges="mse")
TRAINING = LSQ(epochs=4, lr=5e-3, batch=32, distill=0.0)


def quantizers(model: nn.Module) -> list[FakeQuantize]:
    activations = attached(model)
    assert activations is not None
    on_weights = [weight_quantizer(layer) for layer in surgery.weighted_layers(model).values()]
    return [q for q in (*on_weights, *activations.quantizers) if isinstance(q, FakeQuantize)]


def outputs(model: nn.Module, name: str) -> Tensor:
    with torch.no_grad():
        return surgery.call(model.eval(), tensors(inputs_of(name, 32, seed=5)))["output"]


def loss_of(model: nn.Module, task: Task) -> float:
    batch = task.train.read(range(len(task.train)))
    assert task.loss is not None
    with torch.no_grad():
        return float(task.loss(surgery.call(model, tensors(batch.inputs)), torch.as_tensor(batch.targets)))


def test_the_gradients_by_hand() -> None:
    """Eq. 3 and 5 for codes -3..3 with s = 0.5: inside, below, above; N = 4 weights share the scale, Q_P = 3."""
    learned = _LearnedScale(FakeQuantize(torch.tensor([0.5]), torch.tensor([0]), -3, 3, axis=0), count=4)
    x = torch.tensor([[0.4, -0.9, 9.0, -9.0]], requires_grad=True)  # v = 0.8, -1.8, 18, -18
    y = learned(x)
    assert y.tolist() == [[0.5, -1.0, 1.5, -1.5]]
    y.backward(torch.tensor([[1.0, 10.0, 100.0, 1000.0]]))  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.tolist() == [[1.0, 10.0, 0.0, 0.0]]
    slopes = 1.0 * (1 - 0.8) + 10.0 * (-2 + 1.8) + 100.0 * 3 + 1000.0 * -3
    assert learned.log_ratio.grad is not None
    assert learned.log_ratio.grad.item() == pytest.approx(slopes / (4 * 3) ** 0.5 * 0.5)  # ds/dp = s


def test_the_gradient_around_a_zero_point() -> None:
    """Codes 0..15 around 5 are levels -5..10; N are the features of one sample, not of the batch."""
    learned = _LearnedScale(FakeQuantize(torch.tensor(0.1), torch.tensor(5), 0, 15, PER_TENSOR), count=None)
    x = torch.tensor([[-2.0, 0.32], [0.32, 2.0]], requires_grad=True)
    learned(x).backward(torch.ones(2, 2))
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, 1.0], [1.0, 0.0]]
    slopes = -5 + 2 * (3 - 3.2) + 10
    assert learned.log_ratio.grad is not None
    assert learned.log_ratio.grad.item() == pytest.approx(slopes / (2 * 15) ** 0.5 * 0.1, rel=1e-4)


@pytest.mark.parametrize("name", ["residual", "tokens"])
def test_freezing_changes_no_bit(name: str) -> None:
    task = task_for(name)
    model, _ = Recipe((LOW,)).apply(network(name), task, context())
    before = [q.scale.clone() for q in quantizers(model)]
    zeros = [q.zero_point.clone() for q in quantizers(model)]
    with learning(model):
        fit(model, task.train, task.loss, None, Schedule(1, 1e-2, 16, 0.0, 0.0, 4.0), 0, lambda *told: None)
        learned = outputs(model, name)
    assert torch.equal(outputs(model, name), learned)
    after = quantizers(model)
    assert not any(torch.equal(a, q.scale) for a, q in zip(before, after, strict=True)), "every scale was trained"
    assert all(torch.equal(a, q.zero_point) for a, q in zip(zeros, after, strict=True))
    assert not any("scale" in key or "log_ratio" in key for key, _ in model.named_parameters())


def test_trained_scales_beat_fixed_ones() -> None:
    """At 2 bits, after the same number of steps; and both beat rounding to the nearest."""
    task = task_for("plain", 128)
    fixed = FineTune(epochs=4, lr=5e-3, batch=32, distill=0.0)
    teacher, _ = Recipe((FineTune(epochs=8, lr=5e-3, batch=32, distill=0.0),)).apply(network("plain"), task, context())
    nearest, tuned, learned = (
        loss_of(Recipe((LOW, *more)).apply(teacher, task, context())[0], task) for more in ((), (fixed,), (TRAINING,))
    )
    assert learned < tuned < nearest


def test_scales_of_groups() -> None:
    """Weights alone, groups that do not divide the inputs, negative scales: learned, frozen, and better than fixed."""
    task, low = task_for("plain", 128), QuantizeWeights(bits=2, group=32)
    teacher, _ = Recipe((FineTune(epochs=8, lr=5e-3, batch=32, distill=0.0),)).apply(network("plain"), task, context())
    model, _ = Recipe((low,)).apply(teacher, task, context())
    quantizer = weight_quantizer(model.fc1)  # 48 inputs
    assert quantizer is not None
    assert quantizer.scale.shape == (16, 2)
    with learning(model):
        fit(model, task.train, task.loss, None, Schedule(4, 5e-3, 32, 0.0, 0.0, 4.0), 0, lambda *told: None)
        learned = outputs(model, "plain")
    assert torch.equal(outputs(model, "plain"), learned)
    nearest, _ = Recipe((low,)).apply(teacher, task, context())
    before = weight_quantizer(nearest.fc1)
    assert before is not None
    same = torch.isclose(before.scale, quantizer.scale, rtol=1e-4)
    assert float(same.float().mean()) < 0.5, "but for outputs that no gradient reaches"
    assert loss_of(model, task) < loss_of(nearest, task)


def test_the_file_holds_the_trained_scales(tmp_path: Path) -> None:
    task = task_for("residual")
    model, _ = Recipe((LOW, TRAINING)).apply(network("residual"), task, context())
    inputs, target = inputs_of("residual", 16, seed=3), Target("onnxruntime")
    onnxruntime.deploy(model, inputs, tmp_path / "m.onnx", target)
    found = onnxruntime.open_file(tmp_path / "m.onnx", target)(inputs)["output"]
    with torch.no_grad():
        wanted = model(torch.as_tensor(inputs["x"])).numpy()
    assert relative_error(found, wanted) < 0.02


def test_a_failed_training_leaves_quantizers() -> None:
    task = task_for("plain")
    model, _ = Recipe((Quantize(),)).apply(network("plain"), task, context())
    with torch.no_grad():
        model.fc2.bias.fill_(np.nan)
    with pytest.raises(TrialError):
        LSQ()(model, task, context())
    assert len(quantizers(model)) == len(list(surgery.weighted_layers(model))) + len(attached(model).quantizers)  # type: ignore[union-attr]


def test_what_it_needs() -> None:
    with pytest.raises(RecipeError, match="put Quantize or QuantizeWeights before it"):
        Recipe((LSQ(),)).apply(network("mlp"), task_for("mlp"), context())
    with pytest.raises(RecipeError, match="LSQ needs training data"):
        Recipe((Quantize(), LSQ())).apply(network("mlp"), task_for("mlp", trainable=False), context())
