"""Attention heads and residual blocks: what goes is really gone, and what was of no use goes without a trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Recipe, Step, Target
from laconic.errors import RecipeError
from laconic.models.unpack import unpack
from laconic.models.zoo.vit import ViT
from laconic.runtime import onnxruntime
from laconic.runtime.difference import relative_error
from laconic.steps.prune.attention import find
from laconic.steps.prune.blocks import PruneBlocks, residual_blocks
from laconic.steps.prune.heads import PruneHeads
from laconic.steps.prune.weights import PruneWeights
from laconic.steps.quantize.post_training import Quantize
from tests.networks import CLASSES, Rows, context, inputs_of, network, task_for, tensors


def apply(model: nn.Module, *steps: Step, x: np.ndarray | None = None, **given: Any) -> tuple[nn.Module, Any]:
    task = task_for("attention", n=16)
    if x is not None:
        object.__setattr__(task, "train", Rows({"x": x}, None))
    return Recipe(steps).apply(model, task, context(reference=lambda inputs: surgery.call(model, inputs), **given))


def outputs(model: nn.Module, x: Any) -> Tensor:
    with torch.no_grad():
        return next(iter(surgery.call(model.eval(), {"x": torch.as_tensor(x)}).values()))


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class Torch(nn.Module):
    """torch's own attention, as it is when a model was loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(12, 4, batch_first=True)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), -1, 12)  # n 16 12
        return self.head((x + self.attn(x, x, x, need_weights=False)[0]).mean(1))


class Grouped(nn.Module):
    """Four heads that share two keys and values, in layers of their own (Llama's way)."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim = 3
        self.q_proj, self.o_proj = nn.Linear(12, 12, bias=False), nn.Linear(12, 12, bias=False)
        self.k_proj, self.v_proj = nn.Linear(12, 6, bias=False), nn.Linear(12, 6, bias=False)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), -1, 12)
        q, k, v = (f(x).unflatten(2, (-1, 3)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        y = torch.softmax(q @ k.repeat_interleave(2, 1).transpose(2, 3), -1) @ v.repeat_interleave(2, 1)
        return self.head(self.o_proj(y.transpose(1, 2).flatten(2)).mean(1))


class Stubborn(nn.Module):
    """Heads whose number is written into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.reshape(len(x), 16, 12)).reshape(len(x), 16, 3, 4, 3).permute(2, 0, 3, 1, 4)
        return self.proj((torch.softmax(q @ k.transpose(2, 3), -1) @ v).transpose(1, 2).reshape(len(x), 16, 12)).mean(1)


FORMS: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    "fused": (lambda: network("attention"), "first.proj", 4),
    "torch": (lambda: unpack(Torch()), "attn.out_proj", 4),
    "grouped": (Grouped, "o_proj", 2),
}


@pytest.mark.parametrize("form", FORMS)
def test_heads_that_nobody_reads_go_without_a_trace(form: str) -> None:
    torch.manual_seed(0)
    build, out, groups = FORMS[form]
    model, x = build(), inputs_of("attention", 5)["x"]
    reader = model.get_submodule(out)
    with torch.no_grad():
        reader.weight[:, : 12 // groups] = 0  # the first
    before = outputs(model, x)
    name = out.rpartition(".")[0]
    layers = {name: 1 / groups} if name else {}
    changed, (facts,) = apply(model, PruneHeads(0.0 if name else 0.5, layers=layers))
    assert list(facts["removed"].values()) == [[0]]
    torch.testing.assert_close(outputs(changed, x), before, rtol=1e-4, atol=1e-5)
    assert parameters(changed) == parameters(model) - 4 * 12 * 12 // groups * (3 if form == "grouped" else 4) // 4 - {
        "fused": 9, "torch": 9, "grouped": 0,
    }[form]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("criterion", ["l2", "taylor", "obs", "woodfisher", "random"])
def test_facts_and_weights_rebuild_the_network(form: str, criterion: Any) -> None:
    model = FORMS[form][0]().eval()
    recipe = Recipe((PruneHeads(0.5, criterion=criterion, recovery="least_squares"),))
    changed, facts = recipe.apply(model, task_for("attention", n=16), context(reference=None))
    assert facts[0]["removed"]
    again = recipe.restore(FORMS[form][0](), facts)
    again.load_state_dict(changed.state_dict())
    x = inputs_of("attention", 4)["x"]
    assert torch.equal(outputs(again, x), outputs(changed, x))


def test_recovery_comes_nearer_to_the_whole_network() -> None:
    model, x = network("attention"), inputs_of("attention", 32, seed=3)["x"]
    wanted = outputs(model, x)
    without, fitted = (apply(model, PruneHeads(0.5, recovery=recovery))[0] for recovery in ("none", "least_squares"))
    errors = [float((outputs(changed, x) - wanted).square().mean()) for changed in (without, fitted)]
    assert errors[1] < 0.5 * errors[0]


def test_one_head_stays_and_names_are_checked() -> None:
    changed, _ = apply(network("attention"), PruneHeads(0.9))
    assert [module.get_submodule("qkv").out_features for module in (changed.first, changed.second)] == [9, 9]
    _, (facts,) = apply(network("attention"), PruneHeads(0.5), keep=("second.*", "second"))
    assert list(facts["removed"]) == ["first"]
    with pytest.raises(RecipeError, match="layers of PruneHeads names no layer: got 'frist', wanted a glob of first"):
        apply(network("attention"), PruneHeads(layers={"frist": 0.5}))


def test_what_cannot_be_followed_is_left_whole() -> None:
    model = Stubborn()
    changed, (facts,) = apply(model, PruneHeads(0.5))
    assert facts["removed"] == {}
    assert facts["left_whole"] == {"": "the way of its heads through the network cannot be followed"}
    assert parameters(changed) == parameters(model)


def test_the_transformer_of_the_zoo_loses_heads_and_blocks() -> None:
    x = np.random.default_rng(0).standard_normal((8, 1, 28, 28)).astype(np.float32)
    model = ViT().eval()
    assert list(find(model)) == [f"blocks.{i}" for i in range(5)]
    changed, _ = apply(model, PruneHeads(0.5), PruneBlocks(0.4), x=x)
    assert outputs(changed, x).shape == (8, 10)
    assert parameters(changed) < 0.55 * parameters(model)


def test_the_file_becomes_smaller_and_agrees(tmp_path: Path) -> None:
    inputs, target = inputs_of("attention", 4), Target("onnxruntime")
    for path, steps in ((tmp_path / "a", ()), (tmp_path / "b", (PruneHeads(0.75),))):
        changed, _ = apply(network("attention"), *steps)
        onnxruntime.deploy(changed, inputs, path, target)
    found = onnxruntime.open_file(tmp_path / "b", target)(inputs)["output"]
    assert relative_error(found, outputs(changed, inputs["x"]).numpy()) < 1e-5
    saved = 4 * 2 * 3 * (9 * 12 + 9 + 12 * 3)  # bytes of two modules' three heads: rows, biases, columns
    assert (tmp_path / "a").stat().st_size - (tmp_path / "b").stat().st_size > 0.9 * saved


# --------------------------------------------------------------------------------------------------------------- blocks


def test_residual_blocks_are_found() -> None:
    assert residual_blocks(network("residual"), tensors(inputs_of("residual", 2))) == ["blocks.0", "blocks.2"]
    assert residual_blocks(network("plain"), tensors(inputs_of("plain", 2))) == []


def test_a_block_that_adds_nothing_goes_first_and_without_a_trace() -> None:
    model, x = network("residual"), inputs_of("residual", 5)["x"]
    norm = model.get_submodule("blocks.2.bn2")
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias.zero_()
    before = outputs(model, x)
    changed, (facts,) = apply(model, PruneBlocks(0.5))
    assert facts == {"removed": ["blocks.2"], "changes": {"blocks.2": 0.0}}
    torch.testing.assert_close(outputs(changed, x), before)
    assert set(surgery.weighted_layers(model)) - set(surgery.weighted_layers(changed)) == {
        "blocks.2.conv1", "blocks.2.conv2",
    }  # fmt: skip


def test_blocks_by_name_and_kept_ones() -> None:
    _, (facts,) = apply(network("residual"), PruneBlocks(blocks=("blocks.0",)))
    assert facts["removed"] == ["blocks.0"]
    _, (facts,) = apply(network("residual"), PruneBlocks(0.9), keep=("blocks.0.conv1",))
    assert facts["removed"] == ["blocks.2"]
    with pytest.raises(RecipeError, match=r"no residual block: got blocks\.1, wanted one of blocks\.0, blocks\.2"):
        apply(network("residual"), PruneBlocks(blocks=("blocks.1",)))


def test_what_is_left_makes_up_for_a_block_that_is_gone() -> None:
    model, x = network("residual"), inputs_of("residual", 16)["x"]
    wanted = outputs(model, x)

    def lost(**settings: Any) -> float:
        changed, _ = apply(model, PruneBlocks(blocks=("blocks.0",), **settings), x=x)
        return float((outputs(changed, x) - wanted).square().mean())

    assert lost(recovery="least_squares") < 0.5 * lost()


def test_a_layer_to_keep_keeps_its_heads() -> None:
    for layer in ("first.qkv", "first.proj", "first"):
        assert "first" not in apply(network("attention"), PruneHeads(0.5), keep=(layer,))[1][0]["removed"]
    assert "first" in apply(network("attention"), PruneHeads(0.5))[1][0]["removed"]


@pytest.mark.parametrize("step", [PruneHeads(0.5), PruneBlocks(0.5)])
def test_behind_other_forms_it_is_refused(step: Step) -> None:
    with pytest.raises(RecipeError, match="after Quantize; prune first, then quantize"):
        apply(network("attention"), Quantize(), step)
    if isinstance(step, PruneHeads):
        with pytest.raises(RecipeError, match=r"PruneHeads of first\.qkv, whose weight has another form already"):
            apply(network("attention"), PruneWeights(), step)
