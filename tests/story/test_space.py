"""What a search is told of a network: what can go, by which step, and which layers it takes along."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from laconic import surgery
from laconic.core import Recipe, Target
from laconic.models.zoo.vit import ViT
from laconic.profile import profile
from laconic.runtime import onnxruntime
from laconic.search.costs import counted
from laconic.search.space import BLOCKS, CHANNELS, HEADS, Allocation, LayerCost, Space
from laconic.steps import STEPS
from laconic.story.space import rank, space
from tests.networks import Rows, context, network, task_for

TRAITS = onnxruntime.traits(Target("onnxruntime"))
FACTS = {"trainable": False, "splits": {"train": 8}}


def told(model: nn.Module, *shape: int, keep: tuple[str, ...] = ()) -> Space:
    return Space.of({"space": space(model.eval(), {"x": torch.zeros(1, *shape)}, keep, TRAITS), **FACTS})


def by_name(made: Space) -> dict[str, LayerCost]:
    return {layer.name: layer for layer in made.layers}


def test_heads_and_the_block_of_one_module() -> None:
    made = told(ViT(), 1, 28, 28)
    assert made.removed_by(HEADS) == {f"heads of blocks.{i}": f"blocks.{i}" for i in range(5)}
    assert made.removed_by(BLOCKS) == {f"block blocks.{i}": f"blocks.{i}" for i in range(5)}
    assert made.groups["heads of blocks.0"].units == 4
    layers = by_name(made)
    assert (layers["blocks.0.qkv"].gives, layers["blocks.0.qkv"].inside) == ("heads of blocks.0", "block blocks.0")
    assert layers["blocks.0.proj"].reads == {"heads of blocks.0": 1.0}
    assert layers["head"].inside is None


def test_what_a_layer_to_keep_belongs_to_is_not_chosen_from() -> None:
    kept = told(ViT(), 1, 28, 28, keep=("blocks.1.qkv",))
    assert {f"blocks.{i}" for i in (0, 2, 3, 4)} == set(kept.removed_by(HEADS).values())
    assert {f"blocks.{i}" for i in (0, 2, 3, 4)} == set(kept.removed_by(BLOCKS).values())


def test_what_is_removed_costs_what_was_told() -> None:
    """Heads, channels and a block: the MACs of the layers are counted, and are what the network has afterwards."""
    model, x = ViT().eval(), {"x": torch.zeros(1, 1, 28, 28)}
    made = told(model, 1, 28, 28)
    channels = next(key for key in made.removed_by(CHANNELS) if key.startswith("blocks.2."))
    keeps = {"heads of blocks.0": 0.5, channels: 0.5, "block blocks.4": 0.0}
    steps = (
        STEPS[HEADS](layers={"blocks.0": 0.5}),
        STEPS[CHANNELS](layers={channels: 0.5}),
        STEPS[BLOCKS](blocks=("blocks.4",)),
    )
    task = replace(task_for("attention"), train=Rows({"x": np.zeros((8, 1, 28, 28), np.float32)}, None))
    changed, _ = Recipe(steps).apply(model, task, context(reference=None))
    layers = {row.name: row.macs for row in profile(changed.eval(), x).layers if row.name in by_name(made)}
    wanted = counted(made, "macs")
    assert sum(layers.values()) == pytest.approx(wanted.of(Allocation(keeps)) * wanted.whole, rel=1e-6)


def test_a_network_without_attention_has_blocks_alone() -> None:
    made = told(network("residual"), 3, 8, 8)
    assert list(made.removed_by(BLOCKS).values()) == ["blocks.0", "blocks.2"]
    assert not made.removed_by(HEADS)
    assert told(network("plain"), 3, 8, 8).removed_by(BLOCKS) == {}


@pytest.mark.parametrize("name", ["stem.0", "blocks.1.conv2", "head"])
def test_the_rank_of_a_layer_is_that_of_a_product_with_as_many_macs(name: str) -> None:
    model = network("residual").eval()
    layer = surgery.weighted_layers(model)[name]
    asked = rank(layer)
    out, inputs, *kernel = layer.weight.shape
    height, width = kernel or (1, 1)
    assert asked * (height * inputs + width * out) == pytest.approx(layer.weight.numel())
