"""Peak, fusion and cache against numbers worked out by hand; the gradients' cost against what autograd really does."""

from __future__ import annotations

from collections import Counter
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from laconic.profile import profile
from laconic.profile.memory import Touched, dram_bytes, fused, peak_bytes

X, W, Y, Z = range(4)

# ---------------------------------------------------------------------------------------------------------------- peak


class Residual(nn.Module):
    """x + f(g(x)) with layers of 8 numbers: x must outlive both."""

    def __init__(self, residual: bool) -> None:
        super().__init__()
        self.first, self.second, self.residual = nn.Linear(8, 32), nn.Linear(32, 8), residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        return x + y if self.residual else y


@pytest.mark.parametrize(("residual", "numbers"), [(False, 32 + 8), (True, 8 + 32 + 8)])
def test_a_residual_keeps_its_input_alive(residual: bool, numbers: int) -> None:
    found = profile(Residual(residual), torch.zeros(4, 8))
    assert found.peak_activations_bytes == 4 * numbers
    assert found.activations_bytes == 4 * (32 + 8 + 8 * residual)


def test_peak_by_hand() -> None:
    run: list[Touched] = [({X: 10, W: 99}, {Y: 20}), ({Y: 20}, {Z: 5}), ({Z: 5, X: 10}, {4: 1})]
    assert peak_bytes(run, {X: 10, Y: 20, Z: 5, 4: 1}, {X}, {4}) == 10 + 20 + 5
    assert peak_bytes(run, {X: 10, Y: 20, Z: 5, 4: 1}, {X}, {Y, 4}) == 10 + 20 + 5 + 1
    assert peak_bytes([], {X: 10}, {X}, {X}) == 0


def test_views_and_operators_in_place_take_no_memory() -> None:
    chain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Unflatten(1, (2, 4)), nn.Flatten())
    assert profile(chain, torch.zeros(1, 8)).peak_activations_bytes == 4 * (8 + 8)


# ---------------------------------------------------------------------------------------------------------------- DRAM


def test_a_small_cache_holds_nothing_and_a_large_one_all_but_inputs_and_outputs() -> None:
    run: list[Touched] = [({X: 10, W: 40}, {Y: 20}), ({Y: 20}, {Z: 5})]
    assert dram_bytes(run, 0, {X}, {Z}) == [10 + 40 + 20, 20 + 5]
    assert dram_bytes(run, 10**6, {X}, {Z}) == [10, 5]


def test_what_fits_between_producer_and_consumer_stays() -> None:
    run: list[Touched] = [({X: 10, W: 40}, {Y: 20}), ({Y: 20}, {Z: 5})]
    assert dram_bytes(run, 19, {X}, {Z}) == [70, 25]
    assert dram_bytes(run, 20, {X}, {Z}) == [50, 5]  # the weight's next use lies a whole run away


def test_a_value_that_was_pushed_out_is_written_once_and_read_again() -> None:
    run: list[Touched] = [({X: 10}, {Y: 20}), ({W: 100}, {Z: 5}), ({Y: 20, Z: 5}, {4: 1}), ({Y: 20}, {5: 1})]
    small = dram_bytes(run, 50, {X}, {4, 5})
    assert small == [10 + 20, 100, 20 + 1, 1]  # the second reader finds what the first brought back
    assert dram_bytes(run, 125, {X}, {4, 5})[2:] == [1, 1]


_VALUES = st.dictionaries(st.integers(0, 6), st.integers(1, 30), max_size=3)


@given(st.lists(st.tuples(_VALUES, _VALUES), max_size=8), st.integers(0, 200), st.integers(0, 200))
def test_a_larger_cache_never_means_more_traffic(run: list[Touched], one: int, other: int) -> None:
    inputs, outputs = {0}, {6}
    small, large = (dram_bytes(run, size, inputs, outputs) for size in sorted((one, other)))
    assert all(b <= a for a, b in zip(small, large, strict=True))
    unlimited = sum(sum(reads.values()) + sum(writes.values()) for reads, writes in run)
    assert sum(small) <= unlimited


def test_elementwise_operators_join_the_layer_that_feeds_them() -> None:
    run: list[Touched] = [({X: 10, W: 40}, {Y: 20}), ({Y: 20}, {Z: 20}), ({Z: 20, X: 10}, {4: 20})]
    assert fused(run, [False, True, True], {4}) == [({X: 10, W: 40}, {4: 20}), ({}, {}), ({}, {})]
    assert fused(run, [False, True, False], {4})[0] == ({X: 10, W: 40}, {Z: 20})
    assert fused(run, [False, True, True], {Y, 4})[0] == ({X: 10, W: 40}, {Y: 20})  # an output must be written
    twice: list[Touched] = [({X: 10}, {Y: 20}), ({Y: 20}, {Z: 20}), ({Y: 20, Z: 20}, {4: 20})]
    assert fused(twice, [False, True, False], {4}) == twice


def test_traffic_of_a_layer_and_its_relu() -> None:
    found = profile(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), torch.zeros(1, 8), cache_bytes=0)
    weights, x, y = 8 * 4 + 4, 8, 4
    assert found.traffic_bytes == 4 * (weights + x + y + y + y)
    assert found.dram_bytes == 4 * (weights + x + y)
    assert [row.dram_bytes for row in found.layers] == [4 * (weights + x + y), 0]
    assert found.layers[0].intensity == (2 * 32) / (4 * (weights + x + y))


def test_an_expanded_input_is_read_once_and_an_embedding_reads_the_rows_it_gives() -> None:
    class Expanded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.expand(-1, 100, 4) + torch.zeros(1, 100, 4)

    assert profile(Expanded(), torch.zeros(1, 1, 4)).layers[0].traffic_bytes == 4 * (400 + 4 + 400 + 400)
    found = profile(nn.Embedding(1000, 4), torch.zeros(1, 3, dtype=torch.long))
    assert found.traffic_bytes == 4 * 12 + 8 * 3 + 4 * 12


# ------------------------------------------------------------------------------------------------------------ backward


class _Products(TorchDispatchMode):
    """The MACs of the products that autograd runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, name = func(*args, **(kwargs or {})), func._schema.name
        if name == "aten::convolution_backward":
            gradient, _, weight = args[:3]
            self.macs += gradient.numel() * weight[0].numel() * (args[10][0] + args[10][1])
        elif name in ("aten::mm", "aten::bmm"):
            self.macs += result.numel() * args[0].shape[-1]
        return result


def really(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """The MACs of the gradients and the bytes kept for them, as autograd has them."""
    weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights and tensor.numel():
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model.eval()(x)
    with _Products() as products:
        y.sum().backward()
    return products.macs, sum(kept.values())


class Block(nn.Module):
    """Attention by matrix products and an MLP, both residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out, self.up = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 32)
        self.down = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(torch.softmax(q @ k.mT, -1) @ v)
        return x + self.down(F.gelu(self.up(x)))


NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "convolutions": (
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, groups=4), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
        ),
        (1, 3, 12, 12),
    ),
    "transformer": (Block(), (1, 6, 8)),
    "mlp": (nn.Sequential(nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, 4), nn.Tanh()), (1, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_cost_what_autograd_spends(name: str) -> None:
    model, shape = NETWORKS[name]
    found = profile(model, torch.randn(shape))
    macs, kept = really(model, torch.randn(shape))
    assert found.backward_macs == macs
    assert found.kept_bytes == kept


def test_the_first_layer_has_no_gradient_with_respect_to_its_input() -> None:
    found = profile(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4)), torch.zeros(1, 8))
    assert [row.backward_macs for row in found.layers] == [8 * 6, 2 * 6 * 4]
    gradients = (
        (6 + 8) + (8 * 6 + 6),
        (4 + 6 + 6 * 4) + (6 * 4 + 4 + 6),
    )  # read: dL/dy, kept; written: dL/dw, dL/db, dL/dx
    assert [row.backward_traffic_bytes for row in found.layers] == [4 * n for n in gradients]


def test_gradients_that_meet_are_added() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.second(y) + y

    first = (8 + 8) + (64 + 8)  # read: dL/dy, x; written: dL/dW, dL/db
    second = (8 + 8 + 64) + (64 + 8 + 8)  # and W, to make dL/dy
    met = 2 * 8
    assert profile(Fork(), torch.zeros(1, 8)).backward_traffic_bytes == 4 * (first + second + met)


def test_a_fused_attention_computes_its_scores_again() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.randn(1, 2, 5, 8))

        def forward(self, y: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(self.x, self.x, self.x) + y

    found = profile(Attention(), torch.zeros(1))
    assert found.backward_macs == 5 * found.macs // 2


def test_nothing_is_kept_without_parameters() -> None:
    found = profile(nn.Sequential(nn.ReLU(), nn.Softmax(1)), torch.zeros(1, 4))
    assert (found.backward_macs, found.backward_traffic_bytes, found.kept_bytes) == (0, 0, 0)


def test_a_value_that_two_layers_keep_counts_once() -> None:
    model = Block()
    kept = Counter({row.name: row.kept_bytes for row in profile(model, torch.zeros(1, 6, 8)).layers})
    assert kept["qkv"] == 0 or kept["norm"] >= 4 * 48
