"""What a layer's codes are chosen from: the right rows, the float biases, in the order in which layers run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Recipe, Step
from laconic.errors import RecipeError
from laconic.fake_quantize import attached
from laconic.steps.quantize import rounding
from laconic.steps.quantize.adaround import AdaRound
from laconic.steps.quantize.gptq import GPTQ
from laconic.steps.quantize.layerwise import Rows, choose_codes
from laconic.steps.quantize.post_training import Quantize
from laconic.steps.quantize.reconstruct import Reconstruct
from tests.networks import context, inputs_of, network, task_for, tensors

LAYERS = {
    "plain": (nn.Conv2d(4, 6, 3), (4, 9, 7)),
    "strides, padding, dilation": (nn.Conv2d(4, 6, (3, 2), (2, 1), (2, 1), (1, 2)), (4, 9, 7)),
    "same": (nn.Conv2d(4, 6, (3, 5), padding="same", dilation=(2, 1)), (4, 9, 7)),
    "valid": (nn.Conv2d(4, 6, 3, padding="valid"), (4, 9, 7)),
    "reflected": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (4, 9, 7)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 9, 7)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, stride=2), (4, 9, 7)),
    "one axis": (nn.Conv1d(4, 6, 3, padding=1), (4, 11)),
    "three axes": (nn.Conv3d(2, 3, 2, (1, 2, 1)), (2, 4, 5, 3)),
    "linear": (nn.Linear(5, 6), (5,)),
    "tokens": (nn.Linear(5, 6), (7, 5)),
}


def applied(*steps: Step, name: str = "plain") -> nn.Module:
    model, _ = Recipe(steps).apply(network(name), task_for(name), context())
    assert isinstance(model, nn.Module)
    return model


@pytest.mark.parametrize("kind", LAYERS)
def test_rows_times_the_weight_are_what_the_layer_gives(kind: str) -> None:
    layer, shape = LAYERS[kind]
    model = nn.Sequential(layer, nn.ReLU())
    task = task_for("mlp", 16)
    x = torch.randn(16, *shape, generator=torch.Generator().manual_seed(1)).numpy()
    task.train.inputs = {"x": x}  # type: ignore[attr-defined]
    quantized, _ = Recipe((Quantize(bits=3),)).apply(model, task, context())
    seen: list[tuple[Rows, Tensor]] = []

    def choose(one: surgery.Layer, rows: Rows) -> Tensor:
        weight = rounding.float_weight(one)
        seen.append((rows, rows.outputs(weight)))
        return rounding.quantizer_of(one).codes(weight)

    choose_codes(quantized, rounding.rounded_layers(quantized, "It"), task, context(), choose)
    ((rows, found),) = seen
    assert rows.bounds == (0.0, math.inf)
    assert found.shape == rows.wanted.shape
    # the input's 8 bits are all that differs
    assert float((found - rows.wanted).std()) < 0.02 * float(rows.wanted.std())


def test_the_float_network_is_found_again() -> None:
    for name in ("plain", "residual", "pair", "tokens"):
        inputs = tensors(inputs_of(name, 8))
        wanted = surgery.call(network(name), inputs)
        model = applied(Quantize(bits=4), name=name)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        found = surgery.call(rounding.float_network(model), inputs)
        for key, y in wanted.items():
            torch.testing.assert_close(found[key], y, rtol=1e-4, atol=1e-4)
        assert attached(model) is not None, "the model itself is left alone"
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("step", [GPTQ(), AdaRound(20), Reconstruct(iterations=30)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", ["residual", "depthwise", "twice", "shuffled"])
def test_codes_are_codes_and_scales_stay(step: Step, name: str) -> None:
    before, after = applied(Quantize(bits=4), name=name), applied(Quantize(bits=4), step, name=name)
    layers, were = rounding.rounded_layers(after, "It"), rounding.rounded_layers(before, "It")
    moved = 0
    for key, layer in layers.items():
        quantizer, weight = rounding.quantizer_of(layer), rounding.float_weight(layer)
        codes = quantizer.codes(weight)
        assert torch.equal(weight, codes * rounding.scale_of(layer)), "what is stored is on the grid already"
        assert torch.equal(layer.weight, weight)
        assert int(codes.abs().max()) <= quantizer.qmax == 7
        assert torch.equal(quantizer.scale, rounding.quantizer_of(were[key]).scale)
        moved += int((codes != quantizer.codes(rounding.float_weight(were[key]))).sum())
    assert moved > 0 or isinstance(step, Reconstruct), "a block that cannot be bettered stays"


@pytest.mark.parametrize("step", [GPTQ(), AdaRound(3)], ids=lambda s: type(s).__name__)
def test_corrected_biases_are_taken_back_first(step: Step) -> None:
    with_it, without = applied(Quantize(bits=4), step), applied(Quantize(bits=4, bias_correction=False), step)
    inputs = tensors(inputs_of("plain", 8))
    wanted, found = surgery.call(with_it, inputs)["output"], surgery.call(without, inputs)["output"]
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=0.02 * float(wanted.detach().std()))


@pytest.mark.parametrize("step", [GPTQ(), AdaRound(), Reconstruct()], ids=lambda s: type(s).__name__)
def test_without_quantized_weights_there_is_nothing_to_choose(step: Any) -> None:
    with pytest.raises(RecipeError, match="Quantize") as caught:
        applied(step)
    assert "\n" not in str(caught.value)


def means_behind_relus(model: nn.Module, name: str) -> list[Tensor]:
    found: list[Tensor] = []

    def handler(key: str, module: str, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        if "relu" in key:
            found.append(result.mean([d for d in range(result.dim()) if d != 1]))
        return result

    with torch.no_grad(), surgery.watched(model, handler):
        surgery.call(model, tensors(task_for(name).train.read(range(64)).inputs))
    return found


def test_means_behind_the_activation_become_the_float_networks() -> None:
    start, model = applied(Quantize(bits=3, bias_correction=False)), applied(Quantize(bits=3), GPTQ())
    exact = means_behind_relus(network("plain"), "plain")
    assert len(exact) == 3
    for wanted, before, after in zip(
        exact, means_behind_relus(start, "plain"), means_behind_relus(model, "plain"), strict=True
    ):
        assert float((after - wanted).abs().max()) < 0.25 * float((before - wanted).abs().max())
