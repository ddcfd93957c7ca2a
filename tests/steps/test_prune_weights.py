"""Masks: which weights stay, by hand; what becomes of them in training, behind other steps and in the file."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Recipe, Step, Target, Task
from laconic.errors import DataError, RecipeError
from laconic.runtime import onnxruntime
from laconic.runtime.difference import relative_error
from laconic.steps.cluster.kmeans import Cluster
from laconic.steps.prune.channels import PruneChannels
from laconic.steps.prune.cut import Granularity, matrix_of
from laconic.steps.prune.mask import mask_of
from laconic.steps.prune.weights import PruneWeights
from laconic.steps.quantize.gptq import GPTQ
from laconic.steps.quantize.post_training import Quantize
from laconic.steps.quantize.reconstruct import Reconstruct
from laconic.steps.quantize.weights import QuantizeWeights
from laconic.steps.train.fine_tune import FineTune
from tests.networks import Rows, context, inputs_of, network, task_for, tensors


def apply(model: nn.Module, *steps: Step, task: Task | None = None, **given: Any) -> tuple[nn.Module, Any]:
    reference = network("plain", seed=3)
    told = {"reference": lambda inputs: surgery.call(reference, inputs), **given}
    return Recipe(steps).apply(model, task or task_for("plain"), context(**told))


def zeros(model: nn.Module) -> dict[str, Tensor]:
    return {name: layer.weight.detach() == 0 for name, layer in surgery.weighted_layers(model).items()}


def linear(weight: list[list[float]]) -> nn.Sequential:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight = nn.Parameter(torch.tensor(weight))
    return nn.Sequential(layer)


def task_of(x: np.ndarray) -> Task:
    task = task_for("plain", n=len(x))
    object.__setattr__(task, "train", Rows({"x": x.astype(np.float32)}, None))
    return task


NOISE = np.random.default_rng(0).standard_normal((32, 4))


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"density": 0.5}, [[0, 0, 1, 1], [0, 0, 1, 1]]),
        ({"density": 0.25}, [[0, 0, 0, 1], [0, 0, 0, 1]]),
        ({"granularity": "2:4"}, [[0, 0, 1, 1], [0, 0, 1, 1]]),
        ({"granularity": "1:2"}, [[0, 1, 0, 1], [0, 1, 0, 1]]),
        ({"granularity": "2x1"}, [[0, 0, 1, 1], [0, 0, 1, 1]]),
        ({"granularity": "1x2"}, [[0, 0, 1, 1], [0, 0, 1, 1]]),
        ({"granularity": "1x2", "density": 0.75}, [[0, 0, 1, 1], [1, 1, 1, 1]]),
        ({"granularity": "2x2"}, [[0, 0, 1, 1], [0, 0, 1, 1]]),
        ({"density": 0.01}, [[0, 0, 0, 0], [0, 0, 0, 1]]),
    ],
)
def test_the_smallest_go_by_hand(settings: Mapping[str, Any], kept: list[list[int]]) -> None:
    model = linear([[0.1, -0.2, 3.0, -4.0], [0.5, 0.6, -3.5, 5.0]])
    changed, (facts,) = apply(model, PruneWeights(**settings), task=task_of(NOISE))
    assert torch.equal(zeros(changed)["0"], torch.tensor(kept) == 0)
    assert facts["layers"] == {"0": np.mean(kept)}


def test_patterns_and_blocks_run_along_input_channels() -> None:
    layer = nn.Conv2d(4, 2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(1.0, 33).reshape(2, 4, 2, 2))
    changed, _ = apply(nn.Sequential(layer), PruneWeights(granularity="2:4"))
    gone = zeros(changed)["0"]
    assert gone.sum(1).eq(2).all()  # at each place of each kernel
    assert gone[:, :2].all()
    assert not gone[:, 2:].any()
    blocks, _ = apply(nn.Sequential(layer), PruneWeights(granularity="2x4", density=0.75))
    gone = zeros(blocks)["0"]
    assert gone[..., 0, 0].all()
    assert gone.sum() == 8
    kernels, _ = apply(nn.Sequential(layer), PruneWeights(granularity="kernel", density=0.25))
    assert zeros(kernels)["0"].flatten(2).all(2).tolist() == [[True] * 4, [True, True, False, False]]


def test_what_does_not_divide_is_left_whole() -> None:
    changed, (facts,) = apply(network("plain"), PruneWeights(granularity="2:4"))
    assert facts["left_whole"] == {"conv1": "8 x 3 does not divide into 2:4"}
    assert set(facts["layers"]) == {"conv2", "fc1", "fc2"}
    assert not zeros(changed)["conv1"].any()
    _, (facts,) = apply(network("plain"), PruneWeights(granularity="kernel"))
    assert facts["left_whole"] == {"fc1": "it has no kernels", "fc2": "it has no kernels"}


def test_global_shares_are_taken_where_the_weights_are_small() -> None:
    model = nn.Sequential(*linear([[1.0, 2.0], [3.0, 4.0]]), *linear([[10.0, 20.0], [30.0, 40.0]]))
    task = task_of(NOISE[:, :2])
    changed, _ = apply(model, PruneWeights(0.5, scope="global"), task=task)
    assert zeros(changed)["0"].sum() == 3  # one weight stays in every layer
    assert not zeros(changed)["1"].any()
    fair, _ = apply(model, PruneWeights(0.5, scope="global", criterion="lamp"), task=task)
    assert {name: int(gone.sum()) for name, gone in zeros(fair).items()} == {"0": 2, "1": 2}
    named, _ = apply(model, PruneWeights(0.5, scope="global", layers={"1": 0.25}), task=task)
    assert {name: int(gone.sum()) for name, gone in zeros(named).items()} == {"0": 2, "1": 3}


def test_layers_by_globs() -> None:
    changed, (facts,) = apply(
        network("plain"), PruneWeights(0.5, layers={"conv*": 0.25, "conv2": 1.0}, exclude=("fc2",)), keep=("fc1",)
    )
    assert facts["layers"] == {"conv1": 0.25}
    assert not any(zeros(changed)[name].any() for name in ("conv2", "fc1", "fc2"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": {"conv9": 0.5}}, r"layers of PruneWeights names no layer: got 'conv9', wanted a glob of conv"),
        ({"exclude": ("fc3",)}, r"exclude of PruneWeights names no layer: got 'fc3', wanted a glob of fc"),
    ],
)
def test_layers_that_are_not_there(settings: Mapping[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        apply(network("plain"), PruneWeights(**settings))


def test_shared_weights_are_left_whole() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    changed, (facts,) = apply(model, PruneWeights(), task=task_of(NOISE))
    assert facts["left_whole"] == dict.fromkeys(["0", "2"], "its weight is another layer's too")
    assert not zeros(changed)["0"].any()


@pytest.mark.parametrize("criterion", ["taylor", "taylor_abs", "obd", "woodfisher", "obs"])
def test_a_criterion_that_needs_data_without_data(criterion: Any) -> None:
    empty = task_for("plain")
    object.__setattr__(empty, "train", Rows({"x": np.zeros((0, 3, 8, 8), np.float32)}, None))
    with pytest.raises(DataError, match="no calibration samples"):
        apply(network("plain"), PruneWeights(criterion=criterion), task=empty)


@pytest.mark.parametrize("criterion", ["taylor", "obd", "woodfisher"])
def test_without_labels_the_original_says_what_is_right(criterion: Any) -> None:
    task = task_for("plain", labels=False)
    changed, _ = apply(network("plain"), PruneWeights(criterion=criterion), task=task)
    assert zeros(changed)["conv2"].float().mean() == 0.5
    with pytest.raises(DataError, match="got neither labels nor a teacher"):
        apply(network("plain"), PruneWeights(criterion=criterion), task=task, reference=None)


# -------------------------------------------------------------------------------------------------------- behind it


def test_zeros_stay_in_training_and_the_others_learn() -> None:
    pruned, _ = apply(network("plain"), PruneWeights(0.3))
    trained, _ = apply(network("plain"), PruneWeights(0.3), FineTune(epochs=2, lr=3e-3, batch=16))
    before, after = zeros(pruned), zeros(trained)
    for name, layer in surgery.weighted_layers(trained).items():
        assert torch.equal(before[name], after[name])
        assert not torch.allclose(layer.weight, surgery.weighted_layers(pruned)[name].weight)


def test_pruned_again_what_was_gone_stays_gone() -> None:
    once, twice = (apply(network("plain"), *steps)[0] for steps in ([PruneWeights(0.5)], _TWICE))
    for name, gone in zeros(once).items():
        assert zeros(twice)[name][gone].all()
        assert zeros(twice)[name].float().mean() == pytest.approx(0.75, abs=0.01)
        assert len(surgery.weighted_layers(twice)[name].parametrizations["weight"]) == 1  # type: ignore[index, arg-type]


_TWICE = [PruneWeights(0.5), PruneWeights(0.25, criterion="random")]


@pytest.mark.parametrize(
    "steps",
    [
        (Quantize(),),
        (QuantizeWeights(group=16),),
        (Quantize(), GPTQ()),
        (Quantize(), Reconstruct(iterations=5, batch=16)),
        (Quantize(), FineTune(epochs=1, lr=1e-2)),
        (Cluster(bits=3, epochs=1, lr=1e-2),),
    ],
    ids=lambda steps: "-".join(type(step).__name__ for step in steps),
)
def test_zeros_stay_behind_other_forms(steps: tuple[Step, ...]) -> None:
    pruned, _ = apply(network("residual"), PruneWeights(0.25), task=task_for("residual"))
    changed, _ = apply(network("residual"), PruneWeights(0.25), *steps, task=task_for("residual"), reference=None)
    for name, gone in zeros(pruned).items():
        weight = surgery.weighted_layers(changed)[name].weight
        assert weight[gone].eq(0).all(), name
        assert weight.count_nonzero() > 0.1 * weight.numel(), name


def test_batch_norms_are_folded_into_masked_layers() -> None:
    _, (_, facts) = apply(network("plain"), PruneWeights(0.5), Quantize())
    _, (plain,) = apply(network("plain"), Quantize())
    assert facts["folded"] == plain["folded"] != []


@pytest.mark.parametrize(("steps", "error"), [((), 1e-5), ((Quantize(),), 0.05)], ids=["float", "integer"])
def test_the_file_holds_the_zeros_and_agrees(steps: tuple[Step, ...], error: float, tmp_path: Path) -> None:
    inputs, paths, target = inputs_of("residual", 6), (tmp_path / "a", tmp_path / "b"), Target("onnxruntime")
    for path, before in zip(paths, ((), (PruneWeights(0.1),)), strict=True):
        model, _ = apply(network("residual"), *before, *steps, task=task_for("residual"))
        onnxruntime.deploy(model, inputs, path, target)
    found = onnxruntime.open_file(paths[1], target)(inputs)["output"]
    with torch.no_grad():
        wanted = surgery.call(model.eval(), tensors(inputs))["output"].numpy()
    assert relative_error(found, wanted) < error
    packed = [len(zlib.compress(path.read_bytes())) for path in paths]
    assert packed[1] < 0.65 * packed[0]


@pytest.mark.parametrize("other", [Quantize(), Cluster(bits=2), QuantizeWeights()])
def test_behind_another_form_it_is_refused(other: Step) -> None:
    with pytest.raises(RecipeError, match=r"PruneWeights of .*, whose weight has another form already; put PruneW"):
        apply(network("plain"), other, PruneWeights())
    with pytest.raises(RecipeError, match="PruneChannels of conv1, whose weight has another form already"):
        apply(network("plain"), PruneWeights(), PruneChannels(0.5))


def test_units_are_cut_and_spread() -> None:
    layer = nn.Conv2d(4, 6, 3)
    for name in ("weight", "kernel", "3x2", "6x4"):
        cut = Granularity(name).cut(layer)
        assert not isinstance(cut, str)
        matrix = matrix_of(layer.weight.detach())
        units = cut(matrix)
        assert units.numel() == matrix.numel()
        numbers = torch.arange(len(units)).float() + 1
        spread = cut.spread(numbers, matrix.shape)
        assert torch.equal(cut(spread), numbers[:, None].expand_as(units))
        assert math.isclose(float(cut(matrix * spread).sum()), float((units * numbers[:, None]).sum()), rel_tol=1e-4)


def test_facts_and_weights_rebuild_the_masks() -> None:
    recipe = Recipe((PruneWeights(0.3, granularity="2x2"), FineTune(epochs=1, lr=1e-2)))
    model, facts = recipe.apply(network("plain"), task_for("plain"), context())
    again = recipe.restore(network("plain", seed=9), facts)
    again.load_state_dict(model.state_dict())
    masks = {name: mask_of(layer) for name, layer in surgery.weighted_layers(again).items()}
    assert masks["conv2"] is not None
    assert all(torch.equal(gone, zeros(again)[name]) for name, gone in zeros(model).items())
