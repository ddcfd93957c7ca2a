"""Ternary weights: the papers' formulas, least squares by brute force, training, and the deployed file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from laconic import surgery
from laconic.core import Recipe, Target
from laconic.errors import RecipeError
from laconic.runtime import onnxruntime
from laconic.runtime.difference import relative_error
from laconic.steps.quantize.post_training import Quantize
from laconic.steps.quantize.ternary import Ternary, TernaryWeight
from laconic.steps.train.fine_tune import FineTune
from tests.networks import context, inputs_of, network, task_for, tensors


def weight_of(values: list[float]) -> nn.Parameter:
    return nn.Parameter(torch.tensor([values]))


def form_of(layer: nn.Module) -> TernaryWeight:
    (form,) = layer.parametrizations["weight"]  # type: ignore[index, union-attr]
    assert isinstance(form, TernaryWeight)
    return form


def test_trained_by_hand() -> None:
    """t = 0.05 max|w| (eq. 9), the values of eq. 6, the gradients of eq. 7 and 8."""
    form = TernaryWeight(weight_of([1.0, 0.06, 0.04, -0.04, -0.4, -0.05]), trained=True)  # t = 0.05
    assert form.codes().tolist() == [[2, 2, 1, 1, 0, 1]]
    assert form.positive.item() == pytest.approx(0.53)
    assert form.negative.item() == pytest.approx(0.4)
    form().backward(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]))  # type: ignore[no-untyped-call]
    grads = form.positive.grad, form.negative.grad, form.latent.grad
    assert grads[0] is not None and grads[1] is not None and grads[2] is not None  # noqa: PT018 - for the type checker
    assert grads[0].item() == 1.0 + 2.0
    assert grads[1].item() == -5.0, "W_n enters with a minus"
    np.testing.assert_allclose(grads[2][0], [0.53, 1.06, 3.0, 4.0, 2.0, 6.0], rtol=1e-6)


def test_the_closed_form() -> None:
    """t = 0.7 mean|w|; no other pair of values is nearer to the weights."""
    weight = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0)) + 0.1
    form = TernaryWeight(nn.Parameter(weight), trained=False)
    threshold = 0.7 * weight.abs().mean()
    assert torch.equal(form().detach() == 0, weight.abs() <= threshold)
    error = float((weight - form().detach()).square().sum())
    for p, n in np.ndindex(21, 21):
        positive, negative = 0.5 + p / 10, 0.5 + n / 10
        other = torch.where(weight > threshold, positive, torch.where(weight < -threshold, -negative, 0.0))
        assert error <= float((weight - other).square().sum())


@pytest.mark.parametrize("epochs", [0, 1])
def test_the_weight_is_its_codes_in_its_codebook(epochs: float) -> None:
    step = Ternary(epochs=epochs, lr=1e-2, batch=16)
    model, facts = Recipe((step,)).apply(network("residual"), task_for("residual"), context())
    for name in facts[0]["layers"]:
        layer = model.get_submodule(name)
        codes, codebook = form_of(layer).codes(), form_of(layer).codebook()
        assert codes.dtype == torch.uint8
        assert torch.equal(layer.weight, codebook[codes.long()])
        with torch.no_grad():
            assert torch.equal(layer.weight, codebook[codes.long()]), "with and without gradients"
    assert facts[0]["stored_bits"] == 2
    assert facts[0]["computed"] == "float32"


def test_the_ends_stay_in_float() -> None:
    task = task_for("residual")
    _, (facts,) = Recipe((Ternary(epochs=0),)).apply(network("residual"), task, context())
    everything = list(surgery.weighted_layers(network("residual")))
    assert facts["layers"] == [name for name in everything if name not in ("stem.0", "head")]
    _, (facts,) = Recipe((Ternary(epochs=0, keep_ends=False),)).apply(network("residual"), task, context())
    assert facts["layers"] == everything
    _, (facts,) = Recipe((Ternary(epochs=0),)).apply(network("residual"), task, context(keep=("blocks.1",)))
    assert not any(name.startswith("blocks.1") for name in facts["layers"])
    _, (facts,) = Recipe((Ternary(epochs=0),)).apply(network("pair"), task_for("pair"), context())
    assert facts["layers"] == [], "both inputs' layers are first, and all three are last"


def test_training_helps_and_moves_everything() -> None:
    task = task_for("residual", 128)
    step = Ternary(epochs=8, lr=5e-3, batch=32, distill=0.0)
    model, (facts,) = Recipe((step,)).apply(network("residual"), task, context())
    start, _ = Recipe((Ternary(epochs=0.0),)).apply(network("residual"), task, context())
    assert facts["last_loss"] < 0.5 * facts["first_loss"]
    for name in facts["layers"]:
        form, before = form_of(model.get_submodule(name)), form_of(start.get_submodule(name))
        assert form.positive != form.negative
        assert not torch.equal(form.latent, before.latent)
    again, _ = Recipe((step, FineTune(epochs=0.5, batch=32))).apply(network("residual"), task, context())
    assert len(again.blocks[0].conv1.weight.unique()) == 3, "what comes behind trains it as it is"


def test_dead_and_tiny_layers() -> None:
    for values in ([0.0, 0.0, 0.0], [1e-30, -1e-30, 0.0], [2.0, 3.0, 4.0]):
        for trained in (True, False):
            weight = TernaryWeight(weight_of(values), trained)()
            assert torch.isfinite(weight).all()
            assert len(weight.unique()) <= 3


@pytest.mark.parametrize("name", ["depthwise", "tokens"])
def test_the_file_agrees(name: str, tmp_path: Path) -> None:
    step = Ternary(epochs=1, lr=5e-3, batch=32)
    model, _ = Recipe((step,)).apply(network(name), task_for(name), context())
    inputs, target = inputs_of(name, 8, seed=3), Target("onnxruntime")
    onnxruntime.deploy(model, inputs, tmp_path / "m.onnx", target)
    found = onnxruntime.open_file(tmp_path / "m.onnx", target)(inputs)["output"]
    with torch.no_grad():
        wanted = surgery.call(model, tensors(inputs))["output"].numpy()
    assert relative_error(found, wanted) < 1e-5


def test_what_it_refuses() -> None:
    with pytest.raises(RecipeError, match="Ternary needs training data"):
        Recipe((Ternary(),)).apply(network("mlp"), task_for("mlp", trainable=False), context())
    with pytest.raises(RecipeError, match="another form already"):
        Recipe((Quantize(), Ternary(epochs=0))).apply(network("mlp"), task_for("mlp"), context())
