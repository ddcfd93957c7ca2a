"""Block reconstruction: blocks of any network that run by themselves, LSQ's gradient, and never worse than before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Recipe
from laconic.fake_quantize import FakeQuantize, attached
from laconic.steps.quantize import reconstruct, rounding
from laconic.steps.quantize.layerwise import give_biases
from laconic.steps.quantize.observe import calibration_inputs
from laconic.steps.quantize.post_training import Quantize
from laconic.steps.quantize.reconstruct import Reconstruct
from tests.networks import NETWORKS, context, network, task_for, tensors

BLOCKS = {
    "plain": [["conv1", "conv2"], ["fc1", "fc2"]],
    "residual": [
        ["stem.0"],
        ["blocks.0.conv1", "blocks.0.conv2"],
        ["blocks.1.conv1", "blocks.1.conv2", "blocks.1.down.0"],
        ["blocks.2.conv1", "blocks.2.conv2"],
        ["head"],
    ],
    "depthwise": [["conv", "depthwise", "pointwise"], ["head"]],
    "concat": [["left", "right"], ["join", "head"]],
    "pair": [["conv", "side"], ["head"]],
    "tokens": [["patches"], ["qkv", "proj"], ["mlp.1", "mlp.3"], ["head"]],
}


def quantized(name: str, n: int = 40) -> tuple[nn.Module, reconstruct._Network, dict[str, Tensor]]:
    task = task_for(name, n)
    model, _ = Recipe((Quantize(bits=4),)).apply(network(name), task, context())
    layers, inputs = rounding.rounded_layers(model, "It"), calibration_inputs(task)
    give_biases(layers)
    return model, reconstruct._Network(model, layers, inputs, 16), inputs


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_found_in_the_graph(name: str) -> None:
    _, net, _ = quantized(name)
    assert [list(block.layers) for block in net.blocks if block.layers] == BLOCKS[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_in_a_row_are_the_network(name: str) -> None:
    model, net, inputs = quantized(name)
    exact = net.inputs
    coarse = {key: net.round(key, x) for key, x in exact.items()}
    results: list[dict[str, Tensor]] = [{}, {}]
    for block in net.blocks:
        exact, coarse = net.run(block, exact, net.exact), net.run(block, coarse, net.current(block), net.round)
        results[0] |= exact
        results[1] |= coarse
    float_model = network(name)
    for values, whole in ((results[0], float_model), (results[1], model)):
        wanted = surgery.call(whole, inputs)
        for key, y in zip(net.graph.outputs, wanted.values(), strict=True):
            torch.testing.assert_close(values[key], y.detach(), rtol=1e-4, atol=1e-4)


def test_the_scales_gradient_is_lsqs() -> None:
    q = FakeQuantize(torch.tensor(0.1), torch.tensor(3), 0, 15)
    x = torch.linspace(-1.01, 2.02, 61).requires_grad_()
    scale = nn.Parameter(torch.tensor(0.1))
    upstream = torch.linspace(1, 3, 61)
    y: Any = reconstruct._LearnedStep.apply(x, scale, q)
    assert torch.equal(y.detach(), q(x.detach()))
    y.backward(upstream)
    expected, passed = 0.0, []
    for value, g in zip(x.detach().double().tolist(), upstream.tolist(), strict=True):
        level = round(value / 0.1)
        inside = 0 <= level + 3 <= 15
        expected += g * (level - value / 0.1 if inside else (-3 if level < 0 else 12))  # eq. 3
        passed.append(g if inside else 0.0)
    assert scale.grad is not None
    assert x.grad is not None
    assert float(scale.grad) == pytest.approx(expected, rel=1e-3)
    torch.testing.assert_close(x.grad, torch.tensor(passed))


def test_a_block_that_became_worse_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(learner: Any, *_: Any) -> None:
        with torch.no_grad():
            for soft in learner.soft.values():
                soft.v.neg_()
            for step in learner.steps.values():
                step.mul_(1.5)

    monkeypatch.setattr(reconstruct._Learner, "_optimize", spoil)
    model, (_, facts) = Recipe((Quantize(bits=4), Reconstruct())).apply(network("plain"), task_for(), context())
    before, _ = Recipe((Quantize(bits=4),)).apply(network("plain"), task_for(), context())
    assert facts["error_left"] == [1.0, 1.0]
    x = tensors(task_for().search.read(range(8)).inputs)
    assert torch.equal(surgery.call(model, x)["output"], surgery.call(before, x)["output"])


def test_blocks_come_closer_to_the_float_ones() -> None:
    model, (_, facts) = Recipe((Quantize(bits=3), Reconstruct(60))).apply(
        network("residual"), task_for("residual"), context()
    )
    assert len(facts["error_left"]) == 5
    assert max(facts["error_left"]) <= 1.0
    assert min(facts["error_left"]) < 0.9
    carried = attached(model)
    assert carried is not None
    assert not list(carried.parameters()), "scales are plain buffers again"


def test_where_a_clamp_ends_a_range_its_scale_does_not_grow() -> None:
    model, net, _ = quantized("depthwise")
    learner = reconstruct._Learner(net, net.blocks[0], 1, True, torch.Generator())
    carried = attached(model)
    assert carried is not None
    seen = {}
    for key, quantizer in carried.by_value().items():
        if quantizer in learner.steps:
            low, high = learner._limits(quantizer)
            assert low == float(quantizer.scale) / 2
            seen[key] = high / float(quantizer.scale)
    assert seen == {"/relu6#0": 1.0, "/relu6#1": 1.0, "/relu6#2": 1.0, "/mean#0": 2.0}
