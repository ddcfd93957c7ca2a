"""Simulated integers: the same numbers in training, in evaluation and under export; gradients go straight through."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic import surgery
from laconic.fake_quantize import (
    PER_TENSOR,
    ActivationQuantizers,
    FakeQuantize,
    Shared,
    attach,
    attached,
    weight_quantizer,
)
from tests.networks import inputs_of, network, tensors


def per_tensor(scale: float = 0.5, zero: int = 10, qmin: int = 0, qmax: int = 255) -> FakeQuantize:
    return FakeQuantize(torch.tensor(scale), torch.tensor(zero), qmin, qmax)


def per_channel(scales: list[float], axis: int = 0, qmax: int = 127) -> FakeQuantize:
    return FakeQuantize(torch.tensor(scales), torch.zeros(len(scales)), -qmax, qmax, axis=axis)


def exported(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the exported program of the model gives."""
    args = tuple(inputs.values()) if len(inputs) == 1 else ()
    program = torch.export.export(model, args, {} if args else dict(inputs))
    assert any("fake_quantize" in str(node.target) for node in program.graph.nodes)
    return surgery.call(program.module(), inputs)


# ----------------------------------------------------------------------------------------------------------- by itself


@pytest.mark.parametrize(
    ("x", "code"),
    [
        (0.0, 10),
        (0.5, 11),
        (0.25, 10),
        (0.75, 12),
        (0.26, 11),
        (-0.25, 10),
        (-0.75, 8),
        (-5.0, 0),
        (-99.0, 0),
        (122.5, 255),
        (122.0, 254),
        (1e9, 255),
    ],
)
def test_codes_by_hand(x: float, code: int) -> None:
    """Scale 1/2, zero point 10: nearest, ties to even, clamped to 0..255."""
    quantizer = per_tensor()
    assert quantizer.codes(torch.tensor([x])).item() == code
    assert quantizer(torch.tensor([x])).item() == (code - 10) * 0.5


def test_each_channel_has_its_scale() -> None:
    x = torch.tensor([[0.3, -9.0], [0.3, -9.0], [30.0, -9.0]])
    quantizer = per_channel([0.25, 1.0, 0.1], qmax=127)
    assert quantizer.codes(x).tolist() == [[1, -36], [0, -9], [127, -90]]
    assert torch.allclose(quantizer(x), torch.tensor([[0.25, -9.0], [0.0, -9.0], [12.7, -9.0]]))
    across = per_channel([0.25, 1.0], axis=1)
    assert across.codes(x).tolist() == [[1, -9], [1, -9], [120, -9]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 10), st.integers(0, 255))
def test_rounding_is_what_torch_does(seed: int, scale: float, zero: int) -> None:
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 3
    quantizer = per_tensor(scale, zero)
    by_codes = (quantizer.codes(x) - zero) * quantizer.scale
    assert (quantizer(x) - by_codes).abs().max() <= scale * 1.001, "at a tie the kernels may differ by one level"
    assert ((quantizer(x) - by_codes).abs() > scale * 1e-3).float().mean() < 0.01
    scales = torch.rand(3, generator=torch.Generator().manual_seed(seed)) + 0.01
    channels = FakeQuantize(scales, torch.zeros(3), -127, 127, axis=1)
    wanted = torch.fake_quantize_per_channel_affine(x, scales, torch.zeros(3, dtype=torch.int32), 1, -127, 127)
    assert ((channels(x) - wanted).abs() > 1e-6).float().mean() < 0.01


def test_quantizing_twice_changes_nothing() -> None:
    for quantizer in (per_tensor(0.37, 100), per_channel([0.1, 0.7, 3.3])):
        once = quantizer(torch.randn(3, 50))
        assert torch.equal(quantizer(once), once)


@pytest.mark.parametrize(
    ("quantizer", "inside", "outside"),
    [
        (per_tensor(0.5, 10), [-5.2, 0.0, 0.3, 122.7], [-5.3, -100.0, 122.8, 1e6]),
        (per_channel([1.0]), [-127.4, 0.2, 127.4], [-127.6, 127.6, 1e6]),
        (per_channel([1.0], qmax=63), [-63.4, 63.4], [-63.6, 63.6]),
    ],
)
def test_gradients_go_straight_through_inside_the_range(
    quantizer: FakeQuantize, inside: list[float], outside: list[float]
) -> None:
    x = torch.tensor([inside + outside], requires_grad=True)
    (quantizer(x) * 3.0).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[3.0] * len(inside) + [0.0] * len(outside)]


def test_state_and_copies() -> None:
    quantizer = per_channel([0.1, 0.2])
    assert set(quantizer.state_dict()) == {"scale", "zero_point"}
    assert not list(quantizer.parameters())
    again = copy.deepcopy(quantizer)
    again.scale.mul_(2)
    assert quantizer.scale.tolist() == pytest.approx([0.1, 0.2])
    assert per_tensor().zero_point.dtype == torch.int32
    assert per_tensor().axis == PER_TENSOR


# ---------------------------------------------------------------------------------------------------------- on weights


def test_on_a_weight() -> None:
    layer = nn.Linear(4, 3)
    assert weight_quantizer(layer) is None
    original = layer.weight.detach().clone()
    quantizer = per_channel([0.1, 0.2, 0.3])
    parametrize.register_parametrization(layer, "weight", quantizer)
    assert weight_quantizer(layer) is quantizer
    assert torch.equal(layer.weight, quantizer(original))
    layer(torch.ones(2, 4)).sum().backward()
    assert layer.parametrizations["weight"].original.grad is not None
    other = nn.Linear(4, 3)
    parametrize.register_parametrization(other, "weight", nn.Identity())
    assert weight_quantizer(other) is None


# ------------------------------------------------------------------------------------------------------ on activations


def quantized(name: str, *groups: tuple[Shared, FakeQuantize]) -> nn.Module:
    model = network(name)
    attach(model, groups, list(inputs_of(name, 1)))
    return model


INPUT, HIDDEN = Shared(("input/x",)), Shared(("/relu#2",))


def test_values_are_quantized_where_they_arise() -> None:
    model = quantized("plain", (INPUT, per_tensor(0.5, 128)), (HIDDEN, per_tensor(0.25, 0)))
    plain, x = network("plain"), torch.randn(5, 3, 8, 8)
    seen: dict[str, Tensor] = {}
    for one in (model, plain):
        one.get_submodule("conv1").register_forward_pre_hook(lambda m, args: seen.update(conv1=args[0]))
        one.get_submodule("fc2").register_forward_pre_hook(lambda m, args: seen.update(fc2=args[0]))
    with torch.no_grad():
        model(x)
        coarse = dict(seen)
        plain(x)
    assert torch.equal(coarse["conv1"], per_tensor(0.5, 128)(x))
    assert torch.equal(coarse["fc2"], per_tensor(0.25, 0)(coarse["fc2"]))
    assert not torch.equal(seen["fc2"], per_tensor(0.25, 0)(seen["fc2"]))


def test_inputs_by_position_and_by_name() -> None:
    groups = ((Shared(("input/image",)), per_tensor(0.5, 128)), (Shared(("input/extra",)), per_tensor(0.25, 128)))
    model, plain = quantized("pair", *groups), network("pair")
    image, extra = tensors(inputs_of("pair", 3)).values()
    with torch.no_grad():
        wanted = plain(per_tensor(0.5, 128)(image), per_tensor(0.25, 128)(extra))
        for outputs in (model(image, extra), model(image, extra=extra), model(extra=extra, image=image)):
            assert isinstance(outputs, tuple)
            assert all(torch.equal(found, y) for found, y in zip(outputs, wanted, strict=True))


def test_parts_of_a_tuple_are_quantized_by_themselves() -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Any:
            parts = x.chunk(2, 1)
            assert isinstance(parts, tuple)
            top = torch.max(x, 1)
            return parts[0], parts[1], top.values, top.indices

    model = Halves()
    attach(model, [(Shared(("/chunk#0:1",)), per_tensor(1.0, 128))], ["x"])
    x = torch.tensor([[0.3, 0.3]])
    first, second, top, place = model(x)
    assert (first.item(), second.item()) == (pytest.approx(0.3), 0.0)
    assert (top.item(), place.item()) == (pytest.approx(0.3), 0)


def test_a_group_has_one_quantizer_and_passive_values_are_rounded_in_files_alone() -> None:
    shared = Shared(active=("input/x",), passive=("/flatten#0",))
    model = quantized("plain", (shared, per_tensor(0.5, 128)))
    quantizers = attached(model)
    assert quantizers is not None
    by_value = quantizers.by_value()
    assert by_value["input/x"] is by_value["/flatten#0"]
    flat: list[Tensor] = []
    model.get_submodule("fc1").register_forward_pre_hook(lambda m, args: flat.append(args[0]))
    model(torch.randn(2, 3, 8, 8))
    assert not torch.equal(flat[0], per_tensor(0.5, 128)(flat[0]))
    model.get_submodule("fc1")._forward_pre_hooks.clear()
    program = torch.export.export(model, (torch.randn(2, 3, 8, 8),))
    assert sum("fake_quantize" in str(node.target) for node in program.graph.nodes) == 2


@pytest.mark.parametrize("name", ["plain", "residual", "mlp", "pair", "shuffled", "tokens"])
def test_an_exported_program_gives_the_same_numbers(name: str) -> None:
    model = network(name)
    inputs = tensors(inputs_of(name, 4))
    graph = surgery.trace(model, inputs)
    values = [value for call in graph.calls for value in call.outputs if call.family != "reshape"]
    groups = [(Shared((value,)), per_tensor(0.05, 128)) for value in (*graph.inputs, *values)]
    attach(model, groups, list(inputs))
    for layer in surgery.weighted_layers(model).values():
        scale = layer.weight.detach().flatten(1).abs().amax(1) / 127
        quantizer = FakeQuantize(scale, torch.zeros_like(scale), -127, 127, axis=0)
        parametrize.register_parametrization(layer, "weight", quantizer)
    with torch.no_grad():
        wanted = surgery.call(model, inputs)
        found = exported(model, inputs)
    for key, y in wanted.items():
        assert ((found[key] - y).abs() > 1e-4).float().mean() <= 0.25, "a tie may fall to the other side"
        assert (found[key] - y).abs().max() <= 0.1501


def test_a_sequential_root() -> None:
    model = network("mlp")
    attach(model, [(Shared(("input/x",)), per_tensor(0.5, 128))], ["x"])
    x = torch.randn(3, 3, 8, 8)
    assert torch.allclose(model(x), network("mlp")(per_tensor(0.5, 128)(x)))


def test_a_copy_has_quantizers_of_its_own() -> None:
    model = quantized("plain", (INPUT, per_tensor(0.5, 128)))
    again = copy.deepcopy(model)
    x = torch.randn(3, 3, 8, 8)
    before = model(x)
    assert torch.equal(again(x), before)
    quantizers = attached(again)
    assert quantizers is not None
    quantizers.by_value()["input/x"].scale.fill_(3.0)
    assert not torch.equal(again(x), before)
    assert torch.equal(model(x), before)
    with torch.no_grad():
        again.get_submodule("fc2").weight.zero_()
        again.get_submodule("fc2").bias.zero_()
    assert not again(x).any(), "the copy runs its own layers"
    assert torch.equal(model(x), before)


def test_scales_travel_in_the_state() -> None:
    model, other = (quantized("plain", (INPUT, per_tensor(s, 128))) for s in (0.5, 1.0))
    other.load_state_dict(model.state_dict())
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(model(x), other(x))


def test_one_set_of_quantizers() -> None:
    model = quantized("plain", (INPUT, per_tensor()))
    assert isinstance(attached(model), ActivationQuantizers)
    assert attached(network("plain")) is None
    with pytest.raises(AssertionError):
        attach(model, [(HIDDEN, per_tensor())], ["x"])


def test_training_goes_through_both_kinds() -> None:
    model = quantized("plain", (INPUT, per_tensor(0.05, 128)), (HIDDEN, per_tensor(0.02, 0)))
    for layer in surgery.weighted_layers(model).values():
        scale = layer.weight.detach().flatten(1).abs().amax(1) / 127
        quantizer = FakeQuantize(scale, torch.zeros_like(scale), -127, 127, axis=0)
        parametrize.register_parametrization(layer, "weight", quantizer)
    F.cross_entropy(model(torch.randn(8, 3, 8, 8)), torch.arange(8) % 4).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
