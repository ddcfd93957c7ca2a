"""Cross-layer equalization: factors and biases move between layers, and the function stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Recipe, Target
from laconic.errors import RecipeError
from laconic.runtime import onnxruntime
from laconic.runtime.difference import relative_error
from laconic.steps.quantize.equalize import Equalize
from laconic.steps.quantize.links import answer_to, reach_in, reach_out
from laconic.steps.quantize.post_training import Quantize
from tests.networks import NETWORKS, context, inputs_of, network, task_for, tensors


def equalized(model: nn.Module, name: str = "plain", **settings: Any) -> tuple[nn.Module, dict[str, Any]]:
    changed, (facts,) = Recipe((Equalize(**settings),)).apply(model, task_for(name), context())
    return changed, facts


def outputs(model: nn.Module, inputs: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        return np.concatenate([y.numpy().ravel() for y in surgery.call(model, tensors(inputs)).values()])


def pairs_of(facts: dict[str, Any]) -> list[tuple[str, str]]:
    return [(first, second) for first, second, _, _ in facts["pairs"]]


class Chain(nn.Module):
    """Convolutions of channels of very different sizes, one after the other; ``activation`` between them."""

    def __init__(self, activation: Any, padding: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=padding, groups=8)
        self.grouped = nn.Conv2d(8, 12, 1, groups=2)
        self.last = nn.Conv2d(12, 4, 1, bias=False)
        self.activation = activation
        with torch.no_grad():
            for layer in (self.conv, self.depthwise, self.grouped):
                size = 10 ** torch.linspace(-1.5, 1.5, len(layer.weight))[torch.randperm(len(layer.weight))]
                layer.weight *= size.reshape(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.conv, self.depthwise, self.grouped):
            x = self.activation(layer(x))
        return self.last(x).mean((2, 3))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_stays(name: str) -> None:
    model, _ = equalized(network(name), name, absorb=False)
    inputs = task_for(name).calibration_batch().inputs
    wanted = outputs(network(name), inputs)
    assert relative_error(outputs(model, inputs), wanted) < 1e-4
    if name != "depthwise":  # a relu6 stays the same on the calibration samples alone
        unseen = inputs_of(name, 64, seed=5)
        assert relative_error(outputs(model, unseen), outputs(network(name), unseen)) < 1e-4


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("plain", [("conv1", "conv2"), ("fc1", "fc2")]),
        ("residual", [(f"blocks.{i}.conv1", f"blocks.{i}.conv2") for i in range(3)]),
        ("depthwise", [("conv", "depthwise"), ("depthwise", "pointwise"), ("pointwise", "head")]),
        ("mlp", [("1", "3"), ("3", "5")]),
        ("concat", [("join", "head")]),
        ("pair", []),
        ("twice", []),  # the second layer has two callers
        ("shuffled", []),  # channels change places on the way
        ("tokens", []),
    ],
)
def test_pairs(name: str, found: list[tuple[str, str]]) -> None:
    _, facts = equalized(network(name), name, absorb=False)
    assert pairs_of(facts) == found


@pytest.mark.parametrize("activation", [F.relu, F.leaky_relu, nn.Identity()])
def test_channels_are_more_precise(activation: Any) -> None:
    """What is maximised (eq. 9): the sum over channels of the products of their shares of both layers' ranges."""

    def precision(model: nn.Module, first: str, second: str) -> float:
        layers = surgery.weighted_layers(model)
        out, into = reach_out(layers[first]), reach_in(layers[second])
        return float((out / out.max()) @ (into / into.max()))

    model = Chain(activation)
    changed, facts = equalized(model, absorb=False)
    assert len(facts["pairs"]) == 3
    for pair in pairs_of(facts):
        assert precision(changed, *pair) > 1.1 * precision(model, *pair)


def test_equation_11_by_hand() -> None:
    """Two channels: the larger activation stays, the other's ranges meet halfway, as shares of their layers'."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[1].weight.fill_(0.0)
        model[1].weight[0, 0], model[1].weight[1, 0] = 1.0, 0.01
        model[3].weight.copy_(torch.tensor([[2.0, 1.0]]))
    changed, _ = equalized(model, absorb=False)
    first, second = (layer.weight.detach() for layer in surgery.weighted_layers(changed).values())
    assert first[:, 0].tolist() == pytest.approx([1.0, (0.01 * 0.5) ** 0.5], rel=1e-2)
    assert second[0].tolist() == pytest.approx([2.0, 2 * (0.01 * 0.5) ** 0.5], rel=1e-2)


def test_per_tensor_weights_lose_less() -> None:
    inputs = inputs_of("plain", 64, seed=5)
    wanted, errors = outputs(Chain(F.relu).eval(), inputs), {}
    for steps in ((), (Equalize(absorb=False),)):
        recipe = Recipe((*steps, Quantize(per_channel=False)))
        model, _ = recipe.apply(Chain(F.relu), task_for(), context())
        errors[len(steps)] = relative_error(outputs(model, inputs), wanted)
    assert errors[1] < 0.5 * errors[0]


def test_a_clamp_keeps_the_channels_that_use_it() -> None:
    model = Chain(F.relu6)
    before = {n: layer.weight.clone() for n, layer in surgery.weighted_layers(model).items()}
    inputs = task_for().calibration_batch().inputs
    with torch.no_grad():
        reached = model.conv(torch.as_tensor(inputs["x"])).amax((0, 2, 3))
    changed, _ = equalized(model, absorb=False)
    size = surgery.weighted_layers(changed)["conv"].weight.abs().amax((1, 2, 3)) / before["conv"].abs().amax((1, 2, 3))
    assert ((reached >= 6) & (size == 1)).any()
    assert torch.equal(size[reached >= 6], torch.ones(int((reached >= 6).sum())))
    assert (size[reached < 6] != 1).any()
    assert (size * reached)[reached < 6].max() <= 6 * (1 + 1e-5)
    assert relative_error(outputs(changed, inputs), outputs(model, inputs)) < 1e-4
    freed, _ = equalized(model, absorb=False, clamped=1.0)
    size = surgery.weighted_layers(freed)["conv"].weight.abs().amax((1, 2, 3)) / before["conv"].abs().amax((1, 2, 3))
    assert (size[reached >= 6] < 1).any()
    assert (size[reached >= 6] <= 1 + 1e-6).all(), "a factor below 1 would meet the clamp earlier"


# ------------------------------------------------------------------------------------------------------------ absorbing


def high(model: Chain) -> Chain:
    """Every channel far above zero."""
    with torch.no_grad():
        for layer in (model.conv, model.depthwise, model.grouped):
            layer.weight.abs_().mul_(0.02)
            layer.bias.fill_(5.0)
    return model


def test_high_biases_are_absorbed_and_the_function_stays() -> None:
    model = high(Chain(F.relu))
    changed, facts = equalized(model)
    assert facts["absorbed"] == {"conv": 8, "depthwise": 8, "grouped": 12}
    assert facts["biased"] == ["depthwise", "grouped", "last"]
    bias = changed.get_submodule("conv").bias
    assert isinstance(bias, Tensor)
    inputs = inputs_of("plain", 64, seed=5)
    assert relative_error(outputs(changed, inputs), outputs(model, inputs)) < 1e-4
    plain, _ = equalized(model, absorb=False)
    unabsorbed = plain.get_submodule("conv").bias
    assert isinstance(unabsorbed, Tensor)
    assert float(bias.detach().abs().sum()) < 0.1 * float(unabsorbed.detach().abs().sum())


def test_nothing_is_absorbed_where_zeros_are_padded() -> None:
    model = high(Chain(F.relu, padding=1))
    changed, facts = equalized(model)
    assert list(facts["absorbed"]) == ["depthwise", "grouped"]
    inputs = inputs_of("plain", 64, seed=5)
    assert relative_error(outputs(changed, inputs), outputs(model, inputs)) < 1e-4


def test_what_a_layer_answers_to_a_constant() -> None:
    torch.manual_seed(0)
    layer, constant = nn.Conv2d(8, 12, 3, groups=2, bias=False), torch.randn(8)
    wanted = layer(constant.reshape(1, 8, 1, 1).expand(1, 8, 3, 3)).flatten()
    assert torch.allclose(answer_to(layer, constant), wanted, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- odd networks


def test_dead_channels_and_outliers() -> None:
    model = Chain(F.relu)
    with torch.no_grad():
        model.conv.weight[2] = 0
        model.depthwise.weight[3] = 0
        model.grouped.weight[1, 0] = 1e6
    changed, _ = equalized(model)
    assert all(torch.isfinite(value).all() for value in changed.state_dict().values())
    inputs = inputs_of("plain", 32, seed=5)
    assert relative_error(outputs(changed, inputs), outputs(model, inputs)) < 1e-3


def test_layers_to_be_kept_stay() -> None:
    model = network("plain")
    _, (facts,) = Recipe((Equalize(),)).apply(model, task_for(), context(keep=("conv2",)))
    assert pairs_of(facts) == [("fc1", "fc2")]


def test_after_quantize_is_refused() -> None:
    with pytest.raises(RecipeError, match="Equalize after Quantize"):
        Recipe((Quantize(), Equalize())).apply(network("plain"), task_for(), context())


def test_channels_in_another_order_are_no_pair() -> None:
    """Eight columns of a picture are no eight channels, though a linear layer over the columns looks like it."""

    class Columns(nn.Module):
        def __init__(self, dims: tuple[int, int]) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)
            self.head = nn.Linear(8, 4)
            self.dims = dims

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.conv(x)).mean(self.dims))

    torch.manual_seed(0)
    assert pairs_of(equalized(Columns((2, 3)))[1]) == [("conv", "head")]
    assert pairs_of(equalized(Columns((1, 2)))[1]) == []


def test_it_is_deployed_and_restored(tmp_path: Path) -> None:
    recipe = Recipe((Equalize(), Quantize(per_channel=False)))
    model, facts = recipe.apply(network("depthwise"), task_for("depthwise"), context())
    again = recipe.restore(network("depthwise", seed=9), facts)
    again.load_state_dict(model.state_dict())
    inputs = inputs_of("depthwise", 9, seed=3)
    assert np.array_equal(outputs(again, inputs), outputs(model, inputs))
    path, target = tmp_path / "model.onnx", Target("onnxruntime")
    onnxruntime.deploy(model, inputs, path, target)
    found = onnxruntime.open_file(path, target)(inputs)["output"]
    assert relative_error(found.ravel(), outputs(model, inputs)) < 1e-5
    operators = onnxruntime.optimized_operators(path, target)
    assert (operators["QLinearConv"], operators["QGemm"]) == (3, 1)
