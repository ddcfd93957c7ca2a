"""Weights alone in few bits: scales that no other scale beats, a scale for each group, training through, freezing."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Recipe
from laconic.errors import TrialError
from laconic.fake_quantize import GroupQuantize, weight_quantizer
from laconic.runtime.export import frozen_weights
from laconic.steps.quantize.post_training import Quantize
from laconic.steps.quantize.weights import QuantizeWeights, least_squares
from laconic.steps.train.fine_tune import FineTune
from tests.networks import context, inputs_of, network, task_for, tensors


def rounded(model: nn.Module, name: str = "mlp", **settings: Any) -> nn.Module:
    return Recipe((QuantizeWeights(**settings),)).apply(model, task_for(name, 4), context())[0]


def quantizer_of(model: nn.Module, name: str) -> GroupQuantize:
    quantizer = weight_quantizer(model.get_submodule(name))
    assert isinstance(quantizer, GroupQuantize)
    return quantizer


def linear(inputs: int = 96, outputs: int = 8, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, inputs), nn.Linear(inputs, outputs))


def error_of(weights: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Of each group (n,), by the definition."""
    half = 2 ** (bits - 1)
    found = []
    for group, s in zip(weights.double(), scale.double(), strict=True):
        codes = [max(-half, min(half - 1, round(float(w / s)))) for w in group]
        found.append(sum((float(w) - float(s) * q) ** 2 for w, q in zip(group, codes, strict=True)))
    return torch.tensor(found)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("heavy", [False, True])
def test_no_scale_leaves_a_smaller_error(bits: int, heavy: bool) -> None:
    """Beside 1,200 scales of each sign; half a percent is float16's and the search's."""
    torch.manual_seed(bits)
    weights = torch.randn(6, 32)
    if heavy:
        weights[:, 0] *= 6
    scale = least_squares(weights[:, None], bits)[:, 0]
    half, best = 2 ** (bits - 1), torch.full((6,), torch.inf).double()
    for share in np.linspace(0.05, 2.2, 1200):
        for sign in (1, -1):
            tried = sign * share * weights.abs().amax(1, keepdim=True) / half
            codes = torch.round(weights / tried).clamp(-half, half - 1)
            best = best.minimum((weights - codes * tried).double().square().sum(1))
    assert (error_of(weights, scale, bits) <= 1.02 * best).all()
    assert error_of(weights, scale, bits).sum() <= 1.005 * best.sum()


def test_every_group_has_a_scale_of_its_own() -> None:
    model = linear(inputs=80)
    before = quantizer_of(rounded(copy.deepcopy(model), group=32), "2").scale
    with torch.no_grad():
        model[2].weight[3, 32:64] *= 8
    after = quantizer_of(rounded(model, group=32), "2").scale
    assert before.shape == (8, 3), "80 inputs: two groups of 32 and one of 16"
    ratio = (after / before).flatten()
    assert ratio.reshape(8, 3)[3, 1] == 8
    assert ((ratio != 1).nonzero().flatten() == torch.tensor([3 * 3 + 1])).all()


@pytest.mark.parametrize("group", [0, 16, 256])
def test_few_levels_in_each_group(group: int) -> None:
    model = rounded(linear(inputs=80), bits=2, group=group)
    rows = model[2].weight.detach().split(group if 0 < group < 80 else 80, dim=1)
    assert all(len(row.unique()) <= 4 for part in rows for row in part)
    quantizer = quantizer_of(model, "2")
    codes = quantizer.codes(model[2].parametrizations["weight"].original)
    assert set(codes.unique().tolist()) == {-2.0, -1.0, 0.0, 1.0}


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_go_straight_through_inside_the_range(sign: float) -> None:
    """Scale 1/2, codes -2 .. 1: from -1.25 to 0.75, mirrored where the scale is negative."""
    quantizer = GroupQuantize(torch.tensor([[0.5 * sign, 0.5 * sign]]), -2, 1, 4)
    x = sign * torch.tensor([[-1.24, -0.3, 0.0, 0.74, -1.26, 0.76, 9.0, -9.0]])
    x.requires_grad_()
    (quantizer(x) * 3.0).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[3.0] * 4 + [0.0] * 4]
    assert quantizer(x).tolist() == [[sign * y for y in (-1.0, -0.5, 0.0, 0.5, -1.0, 0.5, 0.5, -1.0)]]


@pytest.mark.parametrize("name", ["tokens", "depthwise", "twice", "pair"])
def test_freezing_is_exact_and_export_the_same(name: str) -> None:
    model = rounded(network(name), name, bits=3, group=16)
    inputs = tensors(inputs_of(name, 3))
    with torch.no_grad():
        for layer in surgery.weighted_layers(model).values():  # as training leaves them
            layer.parametrizations["weight"].original.mul_(1.6)  # type: ignore[index, union-attr, operator]
        wanted = surgery.call(model, inputs)
        with frozen_weights(model):
            for key, y in surgery.call(model, inputs).items():
                assert torch.equal(y, wanted[key])
            args = tuple(inputs.values()) if len(inputs) == 1 else ()
            program = torch.export.export(model, args, {} if args else inputs)
        assert any("fake_quantize_groups" in str(node.target) for node in program.graph.nodes)
        for key, y in surgery.call(program.module(), inputs).items():
            assert torch.equal(y, wanted[key])


def test_what_is_left_alone() -> None:
    model = network("residual")
    wanted = {name: layer.weight.clone() for name, layer in surgery.weighted_layers(model).items()}
    steps = (QuantizeWeights(bits=8, exclude=("blocks.*",)), QuantizeWeights(bits=3, exclude=("blocks.1",)))
    made, facts = Recipe(steps).apply(model, task_for("residual", 4), context(keep=("blocks.0",)))
    assert facts[0]["layers"] == ["stem.0", "head"]
    assert facts[1]["layers"] == ["blocks.2.conv1", "blocks.2.conv2"]
    assert [quantizer_of(made, name).qmax for name in ("head", "blocks.2.conv1")] == [127, 3]
    for name, layer in surgery.weighted_layers(made).items():
        if name.startswith(("blocks.0", "blocks.1")):
            assert weight_quantizer(layer) is None
            assert layer.weight.shape == wanted[name].shape


def test_behind_quantize_it_takes_what_was_left_in_float() -> None:
    steps = (Quantize(exclude=("head",)), QuantizeWeights())
    made, facts = Recipe(steps).apply(network("residual"), task_for("residual", 16), context())
    assert facts[1]["layers"] == ["head"]
    assert isinstance(weight_quantizer(made.get_submodule("head")), GroupQuantize)
    assert not isinstance(weight_quantizer(made.get_submodule("stem.0")), GroupQuantize)


def test_dead_tiny_and_huge_weights() -> None:
    model = linear()
    with torch.no_grad():
        model[2].weight[0] = 0
        model[2].weight[1] = 1e-42
        model[2].weight[2, 5] = 1e6
        model[2].weight[3] *= 1e-6
    wanted = model[2].weight.detach().clone()
    found = rounded(model)[2].weight.detach()
    assert torch.isfinite(found).all()
    assert (found[0] == 0).all()
    assert abs(found[2, 5] - 1e6) < 1e6 / 30
    tiny = (found[3] - wanted[3]).norm() / wanted[3].norm()
    assert tiny < 0.15, "scales that float16 cannot hold are kept in float32"


def test_weights_that_are_not_finite_are_one_line() -> None:
    model = linear()
    with torch.no_grad():
        model[2].weight[1, 1] = torch.nan
    with pytest.raises(TrialError, match=r"^weights that are not finite in 2$"):
        rounded(model)


def test_training_goes_on_in_two_bits() -> None:
    task = task_for("mlp", 64)
    model = network("mlp")
    FineTune(epochs=10, lr=3e-3, batch=16, distill=0)(model, task, context())
    reference = copy.deepcopy(model)
    given = context(reference=lambda inputs: surgery.call(reference, inputs))

    def error(made: nn.Module) -> float:
        inputs = tensors(task.train.read(range(64)).inputs)
        with torch.no_grad():
            moved = made(*inputs.values()) - reference(*inputs.values())
        return float((moved - moved.mean(1, keepdim=True)).norm())  # what a softmax sees

    short = QuantizeWeights(bits=2, group=16)
    alone, _ = Recipe((short,)).apply(model, task, given)
    tuned, _ = Recipe((short, FineTune(epochs=20, lr=3e-3, batch=16, distill=1.0))).apply(model, task, given)
    assert error(tuned) < 0.6 * error(alone)
    for name in surgery.weighted_layers(tuned):
        assert torch.equal(quantizer_of(tuned, name).scale, quantizer_of(alone, name).scale)
        assert len(tuned.get_submodule(name).weight[0, :16].unique()) <= 4
