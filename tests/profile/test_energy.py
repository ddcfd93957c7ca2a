"""Energy, roofline, elementwise operations and stored bits, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic.fake_quantize import FakeQuantize, Shared, attach
from laconic.profile import bound_ms, profile


def test_energy_of_a_linear_layer() -> None:
    found = profile(nn.Linear(8, 4, bias=False), torch.zeros(1, 8), cache_bytes=0)
    words = 8 + 32 + 4
    assert found.energy.compute_pj == pytest.approx(32 * (3.7 + 0.9))
    assert found.energy.sram_pj == pytest.approx(words * 5)
    assert found.energy.dram_pj == pytest.approx(words * 640)
    assert found.energy.total_pj == pytest.approx(sum(row.energy_pj for row in found.layers))


def test_a_cache_saves_dram_energy_alone() -> None:
    model, x = nn.Linear(8, 4, bias=False), torch.zeros(1, 8)
    small, large = profile(model, x, cache_bytes=0).energy, profile(model, x, cache_bytes=10**6).energy
    assert (large.compute_pj, large.sram_pj) == (small.compute_pj, small.sram_pj)
    assert large.dram_pj == pytest.approx((8 + 4) * 640)


def test_shorter_floats_cost_less() -> None:
    model = nn.Linear(8, 4, bias=False)
    model.precision = "bf16"  # type: ignore[assignment]  # as the step Cast leaves it
    found = profile(model, torch.zeros(1, 8), cache_bytes=0)
    assert found.energy.compute_pj == pytest.approx(32 * (1.1 + 0.4))
    assert found.dram_bytes == 2 * (8 + 32 + 4)
    assert found.layers[0].precision == "f16"


def quantized(bits: int) -> nn.Module:
    """A linear layer without a bias between quantizers of 8 bits, its weight of ``bits``."""
    model = nn.Sequential(nn.Linear(8, 4, bias=False))
    high = 2 ** (bits - 1) - 1
    parametrize.register_parametrization(
        model[0], "weight", FakeQuantize(torch.full((4,), 0.1), torch.zeros(4), -high - 1, high, axis=0)
    )
    values = [
        (Shared((name,)), FakeQuantize(torch.tensor(0.1), torch.tensor(0), 0, 255))
        for name in ("input/x", "0/linear#0")
    ]
    attach(model, values, ["x"])
    return model


@pytest.mark.parametrize("bits", [8, 4])
def test_integers_are_stored_moved_and_multiplied_as_integers(bits: int) -> None:
    found = profile(quantized(bits), torch.rand(2, 8), cache_bytes=0)
    (row,) = found.layers
    assert (row.name, row.type, row.bits, row.precision) == ("0", "Linear", bits, "int8")
    assert (found.params, found.weights_bytes) == (32, 32 * bits // 8)
    assert found.dram_bytes == 8 + 32 * bits // 8 + 4
    assert found.peak_activations_bytes == 8 + 4
    assert found.energy.compute_pj == pytest.approx(32 * (0.2 + 0.1))


def test_weights_alone_in_integers_are_multiplied_in_float() -> None:
    model = nn.Sequential(nn.Linear(8, 4, bias=False))
    parametrize.register_parametrization(model[0], "weight", FakeQuantize(torch.tensor(0.1), torch.tensor(0), -8, 7))
    found = profile(model, torch.rand(1, 8), cache_bytes=0)
    assert (found.layers[0].precision, found.layers[0].weights_bytes) == ("f32", 16)
    assert found.dram_bytes == 4 * 8 + 16 + 4 * 4


def test_zeros_and_few_values_are_seen() -> None:
    class Signs(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return torch.where(w.abs() > 0.5, w.sign(), 0.0)

    model = nn.Linear(64, 2, bias=False)
    model.weight.data = torch.linspace(-1, 1, 128).reshape(2, 64)
    parametrize.register_parametrization(model, "weight", Signs())
    (row,) = profile(model, torch.zeros(1, 64)).layers
    assert (row.bits, row.nonzero) == (1, 64)  # each channel holds zeros and one sign
    masked = nn.Linear(4, 2)
    masked.weight.data[:, 1:] = 0
    masked.bias.data.fill_(1)
    assert profile(masked, torch.zeros(1, 4)).nonzero == 2 + 2


ELEMENTWISE: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "relu": (nn.ReLU(), (5,), 5),
    "softmax": (nn.Softmax(-1), (3, 4), 5 * 12),
    "batch norm with known statistics": (nn.BatchNorm2d(2), (2, 3, 3), 2 * 18),
    "batch norm with its input's": (nn.BatchNorm2d(2, track_running_stats=False), (2, 3, 3), 7 * 18),
    "layer norm": (nn.LayerNorm(4), (3, 4), 7 * 12),
    "max pooling": (nn.MaxPool2d((2, 3)), (1, 4, 6), 4 * 6),
    "average pooling": (nn.AvgPool2d(2), (1, 4, 4), 4 * 4),
    "global pooling": (nn.AdaptiveAvgPool2d(1), (2, 4, 4), 32),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 2, 2), 7 * 16),
    "nearest": (nn.Upsample(scale_factor=2), (1, 2, 2), 0),
    "moving": (nn.Sequential(nn.ZeroPad2d(1), nn.PixelShuffle(2), nn.Flatten()), (4, 2, 2), 0),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_operations(name: str) -> None:
    module, shape, operations = ELEMENTWISE[name]
    found = profile(module, torch.randn(1, *shape))
    assert (found.macs, found.flops, found.unsupported) == (0, operations, {})


def test_a_mac_is_two_operations() -> None:
    found = profile(nn.Sequential(nn.Linear(8, 4), nn.GELU()), torch.zeros(1, 8))
    assert (found.macs, found.flops) == (32, 2 * 32 + 4)
    heads = nn.LSTM(3, 5, batch_first=True)
    assert profile(heads, torch.zeros(1, 2, 3)).flops == 2 * 2 * 20 * (3 + 5) + 2 * 5 * 13


def test_roofline() -> None:
    assert bound_ms(2e9, 1e3, peak_flops=1e9, bandwidth=1e9) == pytest.approx(2000)
    assert bound_ms(1.0, 1e6, peak_flops=1e9, bandwidth=1e9) == pytest.approx(1.0)
