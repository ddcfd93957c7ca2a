"""Pruning: channels really go, together with all that belongs to them and with nothing else.

The strongest check: where channels are dead, the network without them computes the same. Which layers give a channel is
written out by hand here, layer for layer, and not taken from the code under test.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Recipe, Target
from laconic.errors import RecipeError
from laconic.models import load
from laconic.runtime import onnxruntime
from laconic.runtime.difference import relative_error
from laconic.steps.prune.channels import PruneChannels, channels_kept, notch
from laconic.steps.prune.groups import ChannelGroup, Coupling, coupling, pruned
from laconic.steps.prune.scores import channel_scores
from laconic.steps.quantize.post_training import Quantize
from tests.networks import Rows, context, inputs_of, lively, network, task_for, tensors

Givers = Mapping[str, Sequence[str]]
"""The layers, and the batch norms behind them, that give a group its channels, by the group's name."""

GIVERS: dict[str, Givers] = {
    "plain": {"conv1": ["conv1", "bn1"], "conv2": ["conv2", "bn2"], "fc1": ["fc1"]},
    "residual": {
        "stem.0": ["stem.0", "stem.1", "blocks.0.conv2", "blocks.0.bn2"],
        "blocks.0.conv1": ["blocks.0.conv1", "blocks.0.bn1"],
        "blocks.1.conv1": ["blocks.1.conv1", "blocks.1.bn1"],
        "blocks.1.conv2": [
            *("blocks.1.conv2", "blocks.1.bn2", "blocks.1.down.0", "blocks.1.down.1"),
            *("blocks.2.conv2", "blocks.2.bn2"),
        ],
        "blocks.2.conv1": ["blocks.2.conv1", "blocks.2.bn1"],
    },
    "depthwise": {
        "conv": ["conv", "conv_bn", "depthwise", "depthwise_bn"],
        "pointwise": ["pointwise", "pointwise_bn"],
    },
    "concat": {"left": ["left", "left_bn"], "right": ["right", "right_bn"], "join": ["join"]},
    "mlp": {"1": ["1"], "3": ["3"]},
    "twice": {"first": ["first", "again"]},
    "pair": {},
}


def resnet20_givers() -> Givers:
    found: dict[str, list[str]] = {"conv1": ["conv1", "bn1"]}
    for stage in (1, 2, 3):
        stream = "conv1" if stage == 1 else f"layer{stage}.0.conv2"
        found.setdefault(stream, [])
        for block in (0, 1, 2):
            place = f"layer{stage}.{block}"
            found[stream] += [f"{place}.conv2", f"{place}.bn2"]
            found[f"{place}.conv1"] = [f"{place}.conv1", f"{place}.bn1"]
        if stage > 1:
            found[stream].append(f"layer{stage}.0.shortcut")
    return found


@torch.no_grad()
def kill(model: nn.Module, givers: Sequence[str], channels: Sequence[int]) -> None:
    """Make these channels zero wherever they are given."""
    for name in givers:
        module = model.get_submodule(name)
        for parameter in (module.weight, module.bias):
            if parameter is not None:
                parameter[list(channels)] = 0


def run(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        return surgery.call(model, inputs)


def cases() -> list[tuple[str, str]]:
    return [(name, group) for name, groups in GIVERS.items() for group in groups]


# ------------------------------------------------------------------------------------------------------------- coupling


@pytest.mark.parametrize("name", GIVERS)
def test_the_groups_by_hand(name: str) -> None:
    model = network(name)
    found = coupling(model, tensors(inputs_of(name, 2)), ())
    layers = surgery.weighted_layers(model)
    assert {group.name for group in found.groups} == set(GIVERS[name])
    for group in found.groups:
        assert set(group.layers) == set(GIVERS[name][group.name]) & set(layers)
        assert group.channels == len(layers[group.name].weight)


@pytest.mark.parametrize(
    ("name", "group", "readers"),
    [
        ("plain", "conv2", {"fc1": 1.0}),
        ("concat", "left", {"join": 6 / 16}),
        ("concat", "right", {"join": 10 / 16}),
        ("residual", "stem.0", {"blocks.0.conv1": 1.0, "blocks.1.conv1": 1.0, "blocks.1.down.0": 1.0}),
        ("depthwise", "conv", {"pointwise": 1.0}),
    ],
)
def test_readers_and_their_shares(name: str, group: str, readers: dict[str, float]) -> None:
    found = coupling(network(name), tensors(inputs_of(name, 2)), ())
    (one,) = [g for g in found.groups if g.name == group]
    assert dict(one.readers) == pytest.approx(readers)


@pytest.mark.parametrize(("name", "group"), cases())
@pytest.mark.parametrize("channels", [[0], [1, 4, 5], [0, 2, 3]])
def test_dead_channels_go_without_a_trace(name: str, group: str, channels: list[int]) -> None:
    model, inputs = network(name), tensors(inputs_of(name, 4))
    kill(model, GIVERS[name][group], channels)
    before = run(model, inputs)
    found = coupling(model, inputs, ())
    layer = surgery.weighted_layers(model)[group]
    count = len(layer.weight)
    pruned(model, found.graph, {group: channels})
    assert len(surgery.weighted_layers(model)[group].weight) == count - len(channels)
    after = run(model, inputs)
    for key, y in before.items():
        torch.testing.assert_close(after[key], y, rtol=1e-5, atol=1e-5)


def test_living_channels_do_leave_a_trace() -> None:
    model, inputs = network("plain"), tensors(inputs_of("plain", 4))
    before = run(model, inputs)["output"]
    pruned(model, coupling(model, inputs, ()).graph, {"conv1": [0]})
    assert (run(model, inputs)["output"] - before).abs().max() > 1e-3


def test_dead_channels_of_a_residual_network_of_the_zoo() -> None:
    """All streams and all blocks at once; the shortcuts have no parameters."""
    model = lively(load("zoo:cifar-resnet-20").module)
    x = {"x": torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
    before_any = run(model, x)["output"]
    found = coupling(model, x, ())
    torch.testing.assert_close(run(model, x)["output"], before_any, rtol=1e-5, atol=1e-5)
    givers = resnet20_givers()
    assert {group.name: set(group.layers) for group in found.groups} == {
        name: {layer for layer in layers if "bn" not in layer} for name, layers in givers.items()
    }
    dead = {name: [1, 2, 7, 11] for name in givers}
    for name, channels in dead.items():
        for giver in givers[name]:
            kill(model, [giver], channels)
    before = run(model, x)["output"]
    assert before.abs().max() > 1e-3
    for name, channels in dead.items():
        pruned(model, found.graph, {name: channels})
    assert len(surgery.weighted_layers(model)["layer3.0.conv2"].weight) == 60
    torch.testing.assert_close(run(model, x)["output"], before, rtol=1e-4, atol=1e-5 * float(before.abs().max()))


class Run(nn.Module):
    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def groups_of(forward: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> tuple[nn.Module, Coupling]:
    model = Run(forward, **modules).eval()
    return model, coupling(model, {"x": torch.randn(2, 3, 8, 8)}, ())


def shuffle(self: Any, x: Tensor) -> Tensor:
    n, c, h, w = (y := self.a(x)).shape
    y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
    return self.head(self.b(y).mean((2, 3)))


def halves(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    return self.head((y[:, :4] * torch.sigmoid(y[:, 4:])).mean((2, 3)))


A, B = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1)


@pytest.mark.parametrize(
    ("forward", "modules", "prunable"),
    [
        (shuffle, {"b": B, "head": nn.Linear(6, 4)}, {"b"}),
        (halves, {"head": nn.Linear(4, 4)}, set()),
        (lambda m, x: m.head(F.pixel_shuffle(m.a(x), 2).mean((2, 3))), {"head": nn.Linear(2, 4)}, {"a"}),
        (
            lambda m, x: m.head(torch.cat(torch.split(m.a(x), [3, 5], 1)[::-1], 1).mean((2, 3))),
            {"head": nn.Linear(8, 4)},
            set(),
        ),
        (
            lambda m, x: m.head(F.relu(m.norm(m.a(x))).mean((2, 3))),
            {"norm": nn.GroupNorm(2, 8), "head": nn.Linear(8, 4)},
            {"a"},
        ),
        (
            lambda m, x: m.head((m.c(x) + x).mean((2, 3))),
            {"c": nn.Conv2d(3, 3, 3, padding=1), "head": nn.Linear(3, 4)},
            set(),
        ),
        (
            lambda m, x: m.head((y := F.relu(m.a(x))).mean((2, 3)) * torch.sigmoid(m.g(y.mean((2, 3))))),
            {"g": nn.Linear(8, 8), "head": nn.Linear(8, 4)},
            {"a"},
        ),
        (
            lambda m, x: m.head(m.t(F.relu(m.a(x))).mean((2, 3))),
            {"t": nn.ConvTranspose2d(8, 6, 2, 2), "head": nn.Linear(6, 4)},
            {"a"},
        ),
        (
            lambda m, x: m.head(m.norm(m.l(x.flatten(2).transpose(1, 2))).mean(1)),
            {"l": nn.Linear(3, 8), "norm": nn.LayerNorm(8), "head": nn.Linear(8, 4)},
            {"l"},
        ),
    ],
    ids=["shuffle", "slices", "pixel_shuffle", "split", "groups", "input", "gate", "transposed", "layer_norm"],
)
def test_what_cannot_be_followed_is_left_whole(
    forward: Callable[[Any, Tensor], Tensor], modules: dict[str, nn.Module], prunable: set[str]
) -> None:
    torch.manual_seed(1)
    model, found = groups_of(forward, a=copy.deepcopy(A), **copy.deepcopy(modules))
    assert {group.name for group in found.groups} == prunable
    others = set(surgery.weighted_layers(model)) - prunable - {"head", "g"}
    used = {call.module for call in surgery.trace(model, {"x": torch.randn(1, 3, 8, 8)}).calls}
    for name in others & used:
        assert "cannot be followed" in found.left_whole[name]
    assert found.left_whole["head"] == "its channels are the model's outputs"


def test_trying_out_changes_nothing() -> None:
    model, inputs = network("residual"), tensors(inputs_of("residual", 3))
    state, before = copy.deepcopy(model.state_dict()), run(model, inputs)["output"]
    coupling(model, inputs, ())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(run(model, inputs)["output"], before)


def test_frozen_parameters_are_followed_too_and_stay_frozen() -> None:
    model = network("plain").requires_grad_(False)
    found = coupling(model, tensors(inputs_of("plain", 2)), ())
    assert {group.name for group in found.groups} == set(GIVERS["plain"])
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_what_cannot_be_traced_is_left_whole() -> None:
    found = coupling(Run(lambda m, x: m.a(x) if x.numel() else x, a=nn.Identity()), {"x": torch.ones(2, 3)}, ())
    assert found.groups == ()

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(self.a(x).detach().numpy())

    left = coupling(Broken(), {"x": torch.ones(2, 3)}, ())
    assert left.groups == ()


# ----------------------------------------------------------------------------------------------------------- importance


def importance(model: nn.Module, graph: Any, group: ChannelGroup) -> Tensor:
    return channel_scores(model, graph, [group], "l2", task_for("plain"), context())[group.name]


def test_importance_by_hand() -> None:
    """conv1's channel c: its own weights, and those of conv2 that read it; each layer scaled to a mean of one."""
    model, inputs = network("plain"), tensors(inputs_of("plain", 2))
    found = coupling(model, inputs, ())
    layers = surgery.weighted_layers(model)
    with torch.no_grad():
        given = layers["conv1"].weight.pow(2).sum((1, 2, 3))
        read = layers["conv2"].weight.pow(2).sum((0, 2, 3))
        wanted = (given / given.mean() + read / read.mean()) / 2
        (group,) = [g for g in found.groups if g.name == "conv1"]
        torch.testing.assert_close(importance(model, found.graph, group), wanted)
        (flat,) = [g for g in found.groups if g.name == "conv2"]
        given = layers["conv2"].weight.pow(2).sum((1, 2, 3))
        read = layers["fc1"].weight.pow(2).sum(0).reshape(12, 4).sum(1)
        wanted = (given / given.mean() + read / read.mean()) / 2
        torch.testing.assert_close(importance(model, found.graph, flat), wanted)


def test_importance_of_a_coupled_group_counts_every_layer() -> None:
    model, inputs = network("residual"), tensors(inputs_of("residual", 2))
    found = coupling(model, inputs, ())
    (group,) = [g for g in found.groups if g.name == "stem.0"]
    before = importance(model, found.graph, group)
    for name, axis in (("stem.0", 0), ("blocks.0.conv2", 0), ("blocks.0.conv1", 1), ("blocks.1.down.0", 1)):
        changed = copy.deepcopy(model)
        with torch.no_grad():
            surgery.weighted_layers(changed)[name].weight.select(axis, 3).mul_(10)
        again = coupling(changed, inputs, ())
        assert importance(changed, again.graph, group)[3] > before[3] + 0.1, name


# ------------------------------------------------------------------------------------------------------------ the step


def prune(
    name: str, settings: PruneChannels, model: nn.Module | None = None, **given: Any
) -> tuple[nn.Module, dict[str, Any]]:
    changed, (facts,) = Recipe((settings,)).apply(model or network(name), task_for(name), context(**given))
    return changed, facts


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", GIVERS)
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
def test_the_network_becomes_smaller_and_keeps_its_outputs_shape(name: str, ratio: float) -> None:
    model = network(name)
    changed, facts = prune(name, PruneChannels(ratio))
    inputs = tensors(inputs_of(name, 5))
    assert {k: y.shape for k, y in run(changed, inputs).items()} == {k: y.shape for k, y in run(model, inputs).items()}
    if GIVERS[name]:
        assert parameters(changed) < parameters(model) * (1 - 0.6 * ratio)
    layers, before = surgery.weighted_layers(changed), surgery.weighted_layers(model)
    for group in GIVERS[name]:
        count = len(before[group].weight)
        assert len(layers[group].weight) == max(1, round(count * (1 - ratio)))
        assert len(facts["removed"][group]) == count - len(layers[group].weight)


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "concat", "mlp", "twice"])
def test_dead_channels_are_the_first_to_go(name: str) -> None:
    model = network(name)
    found = coupling(model, tensors(inputs_of(name, 2)), ())
    for group in found.groups:
        dead = [1, group.channels - 1]
        kill(model, GIVERS[name][group.name], dead)
        for reader in group.readers:  # and nobody listens
            weight = surgery.weighted_layers(model)[reader].weight
            start = 6 if (name, group.name) == ("concat", "right") else 0
            width = round(group.readers[reader] * weight.shape[1]) // group.channels
            for channel in dead:
                with torch.no_grad():
                    weight[:, start + channel * width : start + (channel + 1) * width] = 0
    ratios = {group.name: 2 / group.channels for group in found.groups}
    changed, facts = prune(name, PruneChannels(layers=ratios), model)
    assert facts["removed"] == {group.name: [1, group.channels - 1] for group in found.groups}
    inputs = tensors(inputs_of(name, 6))
    torch.testing.assert_close(run(changed, inputs)["output"], run(model, inputs)["output"], rtol=1e-5, atol=1e-5)


def test_one_group_by_its_name() -> None:
    changed, facts = prune("plain", PruneChannels(layers={"conv2": 0.5}))
    sizes = {name: tuple(layer.weight.shape) for name, layer in surgery.weighted_layers(changed).items()}
    assert sizes == {"conv1": (8, 3, 3, 3), "conv2": (6, 8, 3, 3), "fc1": (16, 24), "fc2": (4, 16)}
    assert list(facts["removed"]) == ["conv2"]
    mixed, _ = prune("plain", PruneChannels(0.5, {"conv2": 0.0, "fc1": 0.75}))
    assert [len(layer.weight) for layer in surgery.weighted_layers(mixed).values()] == [4, 12, 4, 4]


def test_kept_layers_keep_their_whole_group() -> None:
    changed, facts = prune("residual", PruneChannels(0.5), keep=("blocks.0.conv2", "blocks.2"))
    sizes = {name: len(layer.weight) for name, layer in surgery.weighted_layers(changed).items()}
    assert sizes["stem.0"] == sizes["blocks.0.conv2"] == 8
    assert sizes["blocks.2.conv1"] == sizes["blocks.1.conv2"] == 16
    assert sizes["blocks.0.conv1"] == 4
    assert facts["left_whole"]["stem.0"] == "--keep names blocks.0.conv2"
    assert facts["left_whole"]["head"] == "its channels are the model's outputs"


def test_grouped_convolutions_lose_the_same_channels_in_every_group() -> None:
    changed, facts = prune("shuffled", PruneChannels(0.5))
    assert list(facts["removed"]) == ["grouped"]
    assert facts["left_whole"]["conv"] == "the way of its channels through the network cannot be followed"
    grouped = changed.get_submodule("grouped")
    assert (grouped.groups, grouped.in_channels, grouped.out_channels) == (2, 8, 4)
    stay = [row for row in range(8) if row % 4 not in facts["removed"]["grouped"]]
    assert torch.equal(grouped.weight, network("shuffled").get_submodule("grouped").weight[stay])


def test_a_ratio_never_empties_a_layer() -> None:
    changed, _ = prune("plain", PruneChannels(0.999))
    assert min(len(layer.weight) for layer in surgery.weighted_layers(changed).values()) == 1
    with pytest.raises(RecipeError, match=r"PruneChannels of conv1: got 1\.0, wanted 0 up to, not including, 1"):
        PruneChannels(layers={"conv1": 1.0})


def test_shared_weights_are_left_whole() -> None:
    model = network("mlp")
    first, second = nn.Linear(24, 24), nn.Linear(24, 24)
    second.weight = first.weight
    tied = nn.Sequential(*model[:3], first, nn.ReLU(), second, nn.ReLU(), *model[3:]).eval()
    changed, facts = prune("mlp", PruneChannels(0.5), tied)
    assert facts["left_whole"]["1"] == "the weight of 3 is another layer's too"  # coupled to both
    assert changed[3].weight is changed[5].weight
    assert list(facts["removed"]) == ["7"]


@pytest.mark.parametrize(
    ("name", "settings", "keep", "message"),
    [
        ("plain", PruneChannels(layers={"conv9": 0.5}), (), r"got conv9, wanted conv1, conv2, fc1"),
        ("plain", PruneChannels(layers={"fc2": 0.5}), (), r"got fc2, .*; its channels are the model's outputs"),
        ("residual", PruneChannels(layers={"blocks.0.conv2": 0.5}), (), r"leads no group: got blocks.0.conv2"),
        ("plain", PruneChannels(layers={"conv1": 0.5}), ("conv1",), r"got conv1, .*; --keep names conv1"),
        (
            "residual",
            PruneChannels(layers={"stem.0": 0.5}),
            ("blocks.0.conv2",),
            "stem.0, .*--keep names blocks.0.conv2",
        ),
        ("pair", PruneChannels(layers={"conv": 0.5}), (), r"got conv, wanted none; its channels are the model's"),
    ],
)
def test_a_layer_that_leads_no_group(name: str, settings: PruneChannels, keep: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        prune(name, settings, keep=keep)


def test_after_quantizing_it_is_refused() -> None:
    with pytest.raises(RecipeError, match="PruneChannels after Quantize; prune first"):
        Recipe((Quantize(), PruneChannels(0.5))).apply(network("plain"), task_for("plain"), context())


def test_files_become_smaller_and_agree(tmp_path: Path) -> None:
    target, inputs = Target("onnxruntime"), inputs_of("residual", 5)
    sizes = []
    for name, steps in (("a", ()), ("b", (PruneChannels(0.5),))):
        model, _ = Recipe(steps).apply(network("residual"), task_for("residual"), context())
        onnxruntime.deploy(model, inputs, tmp_path / name, target)
        sizes.append((tmp_path / name).stat().st_size)
        found = onnxruntime.open_file(tmp_path / name, target)(inputs)["output"]
        wanted = run(model, tensors(inputs))["output"].numpy()
        assert relative_error(found, wanted) < 1e-5
    assert sizes[0] > 1.5 * sizes[1]


@pytest.mark.parametrize("name", GIVERS)
def test_facts_and_weights_rebuild_the_model(name: str) -> None:
    recipe = Recipe((PruneChannels(0.5),))
    model, facts = recipe.apply(network(name), task_for(name), context())
    again = recipe.restore(network(name, seed=9), facts)
    again.load_state_dict(model.state_dict())
    inputs = tensors(inputs_of(name, 4))
    wanted = run(model, inputs)
    assert all(torch.equal(y, wanted[key]) for key, y in run(again, inputs).items())


def test_a_network_of_the_zoo_is_rebuilt() -> None:
    loaded = load("zoo:cifar-resnet-20")
    x = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    task = task_for("plain")
    object.__setattr__(task, "train", Rows({"x": x}, None))
    recipe = Recipe((PruneChannels(0.5), Quantize()))
    model, facts = recipe.apply(loaded.module, task, context())
    again = recipe.restore(load("zoo:cifar-resnet-20").module, facts)
    again.load_state_dict(model.state_dict())
    inputs = {"x": torch.as_tensor(x)}
    assert torch.equal(run(again, inputs)["output"], run(model, inputs)["output"])
    assert parameters(model) < 0.3 * parameters(loaded.module)


# --------------------------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize(
    ("channels", "ratio", "multiple", "kept"),
    [
        (64, 0.5, 8, 32),
        (64, 0.45, 8, 32),
        (64, 0.4, 8, 40),
        (64, 0.0, 8, 64),
        (64, 0.99, 8, 8),
        (16, 0.5, 8, 8),
        (16, 0.3, 8, 12),
        (10, 0.5, 8, 4),
        (24, 0.25, 8, 16),
        (24, 0.2, 8, 20),
        (48, 0.1, 8, 44),
        (16, 0.3, 1, 11),
        (10, 0.99, 1, 1),
        (1, 0.9, 8, 1),
        (7, 0.5, 8, 4),
        (100, 0.5, 8, 48),
    ],
)
def test_counts_by_hand(channels: int, ratio: float, multiple: int, kept: int) -> None:
    assert channels_kept(channels, ratio, multiple) == kept


@given(st.integers(1, 2048), st.floats(0, 1, exclude_max=True), st.integers(1, 64))
def test_counts_are_near_the_ratio_and_like_the_kernels(channels: int, ratio: float, multiple: int) -> None:
    kept = channels_kept(channels, ratio, multiple)
    step = notch(channels, multiple)
    assert step & (step - 1) == 0
    assert step <= max(1, multiple)
    assert step * 4 <= max(channels, 4)
    assert 1 <= kept <= channels
    assert kept % step == 0 or kept == channels
    assert abs(kept - channels * (1 - ratio)) <= max(step, 1)
    assert channels_kept(channels, 0.0, multiple) in (channels, channels - channels % step, channels)
