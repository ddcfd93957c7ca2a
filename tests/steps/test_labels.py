"""Labels: what is tied, worked out by hand from the code of each network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic import surgery
from laconic.steps.prune.groups import coupling, pruned
from laconic.steps.prune.labels import Trail
from laconic.steps.prune.resize import failing

Forward = Callable[[Any, Tensor], Tensor]


class Run(nn.Module):
    def __init__(self, forward: Forward, **parts: Any) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def places(forward: Forward, name: str, unit: int, **parts: Any) -> dict[str, list[int]]:
    """Where a channel of the group called ``name`` lies, once it was tried out; ``x`` is (2, 3, 8, 8)."""
    torch.manual_seed(0)
    model = Run(forward, **parts).eval()
    found = coupling(model, {"x": torch.randn(2, 3, 8, 8)}, ())
    assert name in [group.name for group in found.groups], found.left_whole
    return {f"{path} {dim}": p.tolist() for (path, dim), (_, _, p) in found.graph.places(name, [unit]).items()}


def conv(inputs: int, outputs: int, kernel: int = 1, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, bias=False, **more)


def mean(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def gated(m: Any, x: Tensor) -> Tensor:
    value, gate = m.a(x).chunk(2, 1)
    return m.head(mean(value * torch.sigmoid(gate)))


def shuffled(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(y.view(len(y), 2, -1, *y.shape[2:]).sum(1))


def tokens(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).flatten(2).transpose(1, 2)  # n 64 6
    y = torch.cat([m.begin.expand(len(y), -1, -1), y], 1) + m.positions
    return m.head((y * m.scale)[:, 0])


def weighed(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.head(mean(y * torch.sigmoid(m.map(y))))


def mixer(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).flatten(2)  # n 6 64
    return m.head((y + m.tokens(y)).mean(2))


CASES: dict[str, tuple[Forward, str, dict[str, Any], dict[str, list[int]]]] = {
    "a gate takes the row of its half": (
        gated, "a", {"a": conv(3, 8), "head": nn.Linear(4, 2)}, {"a.weight 0": [1, 5], "head.weight 1": [1]}
    ),
    "what is summed goes together": (
        lambda m, x: mean(shuffled(m, x)), "a", {"a": conv(3, 8), "b": conv(4, 2)},
        {"a.weight 0": [1, 5], "b.weight 1": [1]},
    ),
    "groups stay equally wide": (
        lambda m, x: m.head(mean(m.b(F.relu(m.a(x))))), "a",
        {"a": conv(3, 8), "b": conv(8, 6, groups=2), "head": nn.Linear(6, 2)},
        {"a.weight 0": [1, 5], "b.weight 1": [1]},
    ),
    "a depthwise convolution gives several for one": (
        lambda m, x: m.head(mean(m.b(m.a(x)))), "a",
        {"a": conv(3, 4), "b": conv(4, 8, groups=4), "head": nn.Linear(8, 2)},
        {"a.weight 0": [1], "b.weight 0": [2, 3], "head.weight 1": [2, 3]},
    ),
    "parameters along the channels": (
        tokens, "a",
        {"a": conv(3, 6), "begin": torch.randn(1, 1, 6), "positions": torch.randn(1, 65, 6), "scale": torch.rand(6),
         "head": nn.Linear(6, 2)},
        {"a.weight 0": [1], "head.weight 1": [1], "begin 2": [1], "positions 2": [1], "scale 0": [1]},
    ),
    "a map that weighs every channel is nobody's": (
        weighed, "a", {"a": conv(3, 6), "map": conv(6, 1), "head": nn.Linear(6, 2)},
        {"a.weight 0": [1], "map.weight 1": [1], "head.weight 1": [1]},
    ),
    "a layer over places lets channels pass": (
        mixer, "a", {"a": conv(3, 6), "tokens": nn.Linear(64, 64, bias=False), "head": nn.Linear(6, 2)},
        {"a.weight 0": [1], "head.weight 1": [1]},
    ),
    "a product with a parameter is a layer": (
        lambda m, x: mean(m.a(x)) @ m.matrix, "a", {"a": conv(3, 6), "matrix": torch.randn(6, 2)}, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES)[:-1])
def test_where_a_channel_lies(case: str) -> None:
    forward, name, parts, wanted = CASES[case]
    assert places(forward, name, 1, **parts) == wanted


def test_channels_of_a_grouped_layer_that_are_dead_go_without_a_trace() -> None:
    torch.manual_seed(0)
    model = Run(CASES["groups stay equally wide"][0], a=conv(3, 8), b=conv(8, 6, groups=2), head=nn.Linear(6, 2)).eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        model.a.weight[[1, 5]] = 0
        before = model(x)
        found = coupling(model, {"x": x}, ())
        pruned(model, found.graph, {"a": [1]})
        assert model.b.weight.shape == (6, 3, 1, 1)
        torch.testing.assert_close(model(x), before)
        pruned(model, found.graph, {"b": [0]})  # the graph is that of what is left
        assert (model.b.weight.shape, model.head.weight.shape) == ((4, 3, 1, 1), (2, 4))
        assert model(x).shape == before.shape


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda m, x: m.head(mean(F.pad(torch.diff(m.a(x), dim=1), (0, 0, 0, 0, 0, 1)))), "diff is not known"),
        (lambda m, x: m.head((y := mean(m.a(x)))[:, :, None] @ y[:, None])[:, 0], "its channels are multiplied with"),
        (lambda m, x: m.head(mean(m.a(x) * m.a(x).mean(1, keepdim=True))), "it is spread over channels"),
        (lambda m, x: m.head(F.normalize(mean(m.a(x)))), "the way of its channels through the network cannot be"),
        (lambda m, x: m.head(mean(m.a(x).view(len(x), 6, -1)[..., None])), "the way of its channels through"),
    ],
    ids=["unknown", "product", "mixed", "over channels", "a number in the code"],
)
def test_what_is_left_whole_and_why(forward: Forward, reason: str) -> None:
    torch.manual_seed(0)
    model = Run(forward, a=conv(3, 6), head=nn.Linear(6, 2)).eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = coupling(model, {"x": torch.randn(2, 3, 8, 8)}, ())
    assert found.groups == ()
    assert found.left_whole["a"].startswith(reason)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_values_of_a_deep_network_do_not_grow_while_it_is_tried() -> None:
    """Where norms were left out and nothing put in their place, rounding decided between one token and another."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(64, 8, 24, 4, 64, 256, num_classes=10).eval()
    found = coupling(model, {"x": torch.randn(2, 3, 64, 64)}, ())
    layers = [f"encoder.layers.encoder_layer_{i}.mlp.0" for i in range(24)]
    assert [group.name for group in found.groups] == layers, found.left_whole


@pytest.mark.parametrize(
    ("names", "together", "fail"),
    [
        (["a", "b", "c", "d"], {"a", "c"}, ["c"]),
        (["a", "b", "c", "d"], {"b"}, ["b"]),
        (["s.0.conv.1", "s.0.conv.2", "s.1.conv.1", "s.1.conv.2"], {"s.1.conv.2"}, ["s.1.conv.2"]),
    ],
    ids=["not together", "one", "in the last block"],
)
def test_what_fails_is_found_by_trying(names: list[str], together: set[str], fail: list[str]) -> None:
    assert failing(names, lambda tried: not together <= set(tried)) == fail


def test_the_ends_of_blocks_that_fail_do_not_take_the_rest_along() -> None:
    names = [f"stage{s}.{b}.branch{1 + b}.{i}" for s in range(2) for b in range(2) for i in range(3)]
    ends = [name for name in names if not name.endswith(".1")]
    assert failing(names, lambda tried: not set(ends) & set(tried)) == ends


def test_labels_go_with_their_values() -> None:
    """Else those of a large network's every value are held at once."""
    model = nn.Sequential(*(conv(3, 3) for _ in range(20))).eval()
    trail = Trail(model)
    most = 0

    def handle(key: str, module: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        nonlocal most
        result = trail.handle(key, module, func, args, kwargs)
        most = max(most, len(trail.known))
        return result

    with torch.no_grad(), surgery.watched(model, handle):
        model(torch.randn(2, 3, 8, 8))
    assert 0 < most < 5
