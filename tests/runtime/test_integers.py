"""Quantizers as the pairs that LiteRT's and ExecuTorch's converters know, and what their files say of themselves."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic import surgery
from laconic.core import Recipe
from laconic.errors import DeployError
from laconic.fake_quantize import FakeQuantize, Shared, attach, attached, weight_quantizer
from laconic.runtime.integers import Names, lowered
from laconic.steps.quantize.post_training import Quantize
from tests.networks import INTEGER, NETWORKS, context, inputs_of, network, task_for, tensors

PAIRS = torch.ops.quantized_decomposed
SIGNED = dataclasses.replace(INTEGER, float_output=False)


def quantized(name: str) -> nn.Module:
    return Recipe((Quantize(),)).apply(network(name), task_for(name), context(traits=SIGNED))[0]


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_computes_what_the_model_computes_to_the_bit(name: str, stored: bool) -> None:
    model, inputs = quantized(name), inputs_of(name, 3, seed=1)
    module, args, names = lowered(model, inputs, 3, stored)
    with torch.no_grad():
        found, wanted = module(*args), list(surgery.call(model, tensors(inputs)).values())
    arranged = names.arrange(inputs, [y.numpy() for y in found])
    assert len(arranged) == len(wanted)
    assert all(np.array_equal(y, y_wanted.numpy()) for y, y_wanted in zip(arranged, wanted, strict=True))


def test_scales_and_codes_are_the_models_own() -> None:
    model = quantized("residual")
    module, _, _ = lowered(model, inputs_of("residual", 1), 1, stored=True)
    constants = dict(module.named_buffers())
    stored = [
        constants[n.args[0].target] for n in module.graph.nodes if n.target is PAIRS.dequantize_per_channel.default
    ]
    layers = [layer for layer in surgery.weighted_layers(model).values() if weight_quantizer(layer)]
    codes = [weight_quantizer(layer).codes(layer.weight).to(torch.int8) for layer in layers]  # type: ignore[union-attr]
    assert len(stored) == len(codes) == 9
    assert all(any(torch.equal(a, b) for b in stored if a.shape == b.shape) for a in codes)
    pairs = {n.args[1:] for n in module.graph.nodes if n.target is PAIRS.quantize_per_tensor.default}
    wanted = attached(model)
    assert wanted is not None
    assert pairs == {
        (float(q.scale), int(q.zero_point) - 128, -128, 127, torch.int8) for q in wanted.by_value().values()
    }


def test_activations_of_fewer_bits_are_simulated() -> None:
    model = nn.Sequential(nn.Linear(6, 4)).eval()
    attach(model, [(Shared(("input/x",)), FakeQuantize(torch.tensor(0.1), torch.tensor(7), 0, 15))], ["x"])
    x = {"x": np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)}
    module, args, _ = lowered(model, x, 3, stored=True)
    assert not [n for n in module.graph.nodes if "quantized_decomposed" in str(n.target)]
    with torch.no_grad():
        assert torch.allclose(module(*args)[0], model(torch.as_tensor(x["x"])), atol=1e-6)


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.round() * 0.5


def test_other_weights_become_numbers() -> None:
    model = nn.Sequential(nn.Linear(6, 4)).eval()
    parametrize.register_parametrization(model[0], "weight", Halved())
    module, _, _ = lowered(model, {"x": np.zeros((2, 6), np.float32)}, 2, stored=True)
    assert [n.target for n in module.graph.nodes if n.op == "call_function"] == [torch.ops.aten.linear.default]


def test_few_samples_fill_a_batch() -> None:
    _, (x,), names = lowered(network("plain"), inputs_of("plain", 3), 5, stored=True)
    assert x.shape == (5, 3, 8, 8)
    assert names == Names(5, ("x",), (("output", 0),))


def test_names_travel_behind_the_file(tmp_path: Path) -> None:
    path, names = tmp_path / "model", Names(2, ("a", "b"), (("y", 0), ("again", 0), ("passed", "a")))
    for _ in range(2):
        path.write_bytes(b"content")
        names.append_to(path)
    assert path.read_bytes().startswith(b"content")
    assert Names.of(path) == names
    a, y = np.ones(3), np.zeros(2)
    assert [v.tolist() for v in names.arrange({"a": a, "b": a}, [y])] == [[0, 0], [0, 0], [1, 1, 1]]
    path.write_bytes(b"content")
    with pytest.raises(DeployError, match="cannot open the file: it is damaged, or not laconic's"):
        Names.of(path)
