"""Entropy-penalised training: the price of integers by hand and by the coder, its gradient, what training leaves, and
the deployed and packed file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Recipe, Target
from laconic.errors import RecipeError, TrialError
from laconic.fake_quantize import weight_quantizer
from laconic.pack import container
from laconic.runtime import onnxruntime
from laconic.runtime.difference import relative_error
from laconic.steps.prune.weights import PruneWeights
from laconic.steps.quantize.epr import EPR, code_length
from tests.networks import context, inputs_of, network, task_for, tensors

STEP = EPR(price=1.0, epochs=8, lr=5e-3, batch=32, distill=0.0)
TARGET = Target("onnxruntime")


def integers(layer: nn.Module) -> Tensor:
    """The integers of a layer's weight, and that the weight is these times one step."""
    quantizer = weight_quantizer(layer)
    assert quantizer is not None
    assert quantizer.scale.numel() == 1
    codes: Tensor = torch.round(layer.weight / quantizer.scale).detach()
    assert torch.equal(layer.weight, codes * quantizer.scale)
    return codes


def binary(p: float) -> float:
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def test_the_price_of_integers_is_their_entropy() -> None:
    """All rows and columns alike: n H(zero or not), a bit per sign, and the entropy of the magnitudes."""
    row = torch.tensor([0.0, 0.0, 0.0, 1.0, -1.0, 2.0, 0.0, 0.0]).repeat(64)
    weight = torch.stack([row.roll(i) for i in range(512)])
    used = 3 / 8
    wanted = weight.numel() * (binary(used) + used * (1 + binary(1 / 3)))
    assert code_length(weight, 7).item() == pytest.approx(wanted, rel=0.01)


def test_zeros_that_lie_together_cost_less() -> None:
    apart = (torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) < 0.1).float()
    together = torch.zeros(64, 64)
    together[:, :6] = 1.0
    together[:26, 6] = 1.0
    bits = code_length(together, 3).item()
    assert bits < 0.6 * code_length(apart, 3).item()
    assert code_length(together.T, 3).item() == pytest.approx(bits, rel=1e-5)
    assert code_length(torch.zeros(64, 64), 3).item() < 0.02 * 64 * 64


@pytest.mark.parametrize("structured", [False, True])
def test_the_price_is_about_what_the_coder_takes(structured: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(300, generator=generator).square() * 1.2 if structured else torch.full((300,), 0.4)
    codes = (torch.randn(200, 300, generator=generator) * spread).round().clamp(-3, 3)
    tensor = numpy_helper.from_array(codes.numpy().astype(np.int8), "w")
    content = helper.make_model(helper.make_graph([], "g", [], [], [tensor])).SerializeToString()
    packed = container.pack(content, ".onnx").payload
    assert code_length(codes, 3).item() / 8 == pytest.approx(packed, rel=0.1)


def test_a_weight_is_pulled_by_the_difference_of_two_integers_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    levels = (torch.randn(50, 50, generator=generator) * 0.5).clamp(-7, 7).requires_grad_()
    code_length(levels, 7).backward()  # type: ignore[no-untyped-call]
    assert levels.grad is not None
    at = levels.detach().abs()
    near = (at > 0.05) & (at < 0.95)
    assert (levels.grad * levels.detach())[near].min() > 0, "towards zero, which is what most of them are"
    i = tuple(near.nonzero()[0].tolist())
    low, high = levels.detach().clone(), levels.detach().clone()
    low[i], high[i] = 0.1 * levels.detach()[i].sign(), 0.4 * levels.detach()[i].sign()
    if at[i] < 0.5:  # the frequencies stay: it rounds to zero in both
        slope = (code_length(high, 7) - code_length(low, 7)) / 0.3
        assert slope.item() == pytest.approx(levels.grad[i].abs().item(), rel=0.02)


def test_training_leaves_integers_and_a_price_makes_them_fewer() -> None:
    task, sizes = task_for("mlp", 128), {}
    for price in (0.0, 1.0):
        step = EPR(price=price, epochs=24, lr=1e-2, batch=32, distill=0.0)
        model, (facts,) = Recipe((step,)).apply(network("mlp"), task, context())
        codes = [integers(layer) for layer in surgery.weighted_layers(model).values()]
        assert all(c.abs().max() <= 7 for c in codes)
        assert facts["layers"] == list(surgery.weighted_layers(model))
        assert facts["frozen"]["last_loss"] < 0.3, price
        sizes[price] = sum(code_length(c, 7).item() for c in codes)
    assert sizes[1.0] < 0.6 * sizes[0.0]


def test_the_last_part_tunes_steps_and_biases_while_integers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    from laconic.steps.quantize import epr

    seen: list[dict[str, Tensor]] = []
    train = epr.train

    def spied(step: EPR, model: nn.Module, *rest: object) -> object:
        layers = surgery.weighted_layers(model)
        seen.append({name: layer.weight.detach().clone() for name, layer in layers.items()})
        told = train(step, model, *rest)  # type: ignore[arg-type]
        seen.append({name: layer.weight.detach().clone() for name, layer in layers.items()})
        return told

    monkeypatch.setattr(epr, "train", spied)
    model, _ = Recipe((STEP,)).apply(network("plain"), task_for("plain", 128), context())
    start, end = seen[2:]
    for name, layer in surgery.weighted_layers(model).items():
        ratio = (end[name] / start[name])[start[name] != 0]
        assert ratio.max() - ratio.min() < 1e-5
        assert ratio.mean() != 1
        assert torch.equal(layer.weight, end[name])
        assert layer.bias is not None
        bias = layer.bias.detach().double()
        step = bias[bias != 0].abs().min().item()
        grid = 2.0 ** math.floor(math.log2(step))
        grids = [grid / 2**k for k in range(8)]
        assert any(torch.equal((bias / t).round() * t, bias) and (bias / t).abs().max() <= 31 for t in grids)


def test_biases_stay_in_float_if_so_wanted() -> None:
    step = EPR(bias_bits=0, epochs=1, batch=32)
    model, _ = Recipe((step,)).apply(network("mlp"), task_for("mlp"), context())
    bias = next(iter(surgery.weighted_layers(model).values())).bias
    assert bias is not None
    assert any(float(np.float32(b)) != float(np.float16(b)) for b in bias.detach())


def test_what_pruning_left_out_stays_out() -> None:
    recipe = Recipe((PruneWeights(density=0.25), EPR(epochs=1, batch=32)))
    model, _ = recipe.apply(network("plain"), task_for("plain"), context())
    for layer in surgery.weighted_layers(model).values():
        assert (integers(layer) != 0).float().mean() <= 0.26


@pytest.mark.parametrize("name", ["plain", "depthwise"])
def test_the_file_agrees_and_holds_the_integers(name: str, tmp_path: Path) -> None:
    model, _ = Recipe((EPR(price=0.3, epochs=1, batch=32),)).apply(network(name), task_for(name), context())
    inputs, path = inputs_of(name, 8, seed=3), tmp_path / "m.onnx"
    facts = onnxruntime.deploy(model, inputs, path, TARGET)
    assert {row["computed"] for row in facts["computed"]} == {"float32"}
    assert max(row["stored_bits"] for row in facts["computed"]) <= 8
    packed = container.pack_file(path)
    (tmp_path / "again.onnx").write_bytes(container.unpack(packed.content).content)
    found = onnxruntime.open_file(tmp_path / "again.onnx", TARGET)(inputs)["output"]
    with torch.no_grad():
        wanted = surgery.call(model, tensors(inputs))["output"].numpy()
    assert relative_error(found, wanted) < 1e-5
    stored = [numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
    assert sum(a.size for a in stored if a.dtype == np.float32) < 0.2 * sum(p.numel() for p in model.parameters())


def test_dead_and_broken_layers() -> None:
    model = network("mlp")
    first = next(iter(surgery.weighted_layers(model).values()))
    first.weight.data.zero_()
    changed, _ = Recipe((EPR(epochs=1, batch=32),)).apply(model, task_for("mlp"), context())
    assert all(torch.isfinite(p).all() for p in changed.parameters())
    first.weight.data[0, 0] = math.nan
    with pytest.raises(TrialError, match="not finite"):
        Recipe((EPR(epochs=0),)).apply(model, task_for("mlp"), context())


def test_it_refuses_to_train_without_data() -> None:
    with pytest.raises(RecipeError, match="EPR needs training data"):
        Recipe((EPR(),)).apply(network("mlp"), task_for("mlp", trainable=False), context())
