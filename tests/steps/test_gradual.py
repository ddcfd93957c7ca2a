"""Pruning in rounds, rewinding, and training that makes batch norms sparse."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from laconic import surgery
from laconic.core import Recipe, Step
from laconic.errors import RecipeError
from laconic.steps.prune import gradual
from laconic.steps.prune.channels import PruneChannels
from laconic.steps.prune.gradual import PruneGradually
from laconic.steps.train.fine_tune import FineTune
from laconic.steps.train.slim import Slim, gains_of
from tests.networks import context, network, task_for


def apply(model: nn.Module, *steps: Step, **task: Any) -> tuple[nn.Module, Any]:
    reference = network("plain", seed=3)
    told = context(reference=lambda inputs: surgery.call(reference, inputs))
    return Recipe(steps).apply(model, task_for("plain", **task), told)


def test_density_falls_with_the_cube(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def train(step: Any, model: nn.Module, *rest: Any) -> dict[str, Any]:
        weights = [layer.weight for layer in surgery.weighted_layers(model).values()]
        seen.append(sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights))
        assert step.epochs == 2.0
        return {"last_loss": 0.0}

    monkeypatch.setattr(gradual, "train", train)
    _, (facts,) = apply(network("plain"), PruneGradually(0.2, rounds=4, epochs=8.0))
    assert seen == pytest.approx([0.2 + 0.8 * (27 / 64), 0.2 + 0.8 / 8, 0.2 + 0.8 / 64, 0.2], abs=0.01)
    assert facts["losses"] == [0.0] * 4


def test_each_layer_falls_to_its_own_density(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[float]] = {"conv2": [], "fc1": [], "fc2": []}

    def train(step: Any, model: nn.Module, *rest: Any) -> dict[str, Any]:
        for name, densities in seen.items():
            weight: Any = model.get_submodule(name).weight
            densities.append(int(weight.count_nonzero()) / weight.numel())
        return {}

    monkeypatch.setattr(gradual, "train", train)
    step = PruneGradually(0.2, layers={"fc*": 0.6, "fc2": 1.0}, rounds=2)
    _, (facts,) = apply(network("plain"), step)
    assert seen["conv2"] == pytest.approx([0.2 + 0.8 / 8, 0.2], abs=0.01)
    assert seen["fc1"] == pytest.approx([0.6 + 0.4 / 8, 0.6], abs=0.01)
    assert seen["fc2"] == [1.0, 1.0]
    assert "fc2" not in facts["layers"]


def test_rounds_beat_one_shot() -> None:
    """The same training, the pruning all at once or in rounds; the loss on the training samples."""
    losses = {}
    for rounds in (1, 4):
        losses[rounds] = []
        for seed in range(3):
            step = PruneGradually(0.03, rounds=rounds, epochs=16.0, lr=3e-3, batch=16, distill=0.0)
            _, (facts,) = apply(network("plain", seed=seed), step)
            losses[rounds].append(facts["losses"][-1])
    assert sum(losses[4]) < sum(losses[1])


def test_what_was_masked_stays_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[torch.Tensor] = []

    def train(step: Any, model: nn.Module, *rest: Any) -> dict[str, Any]:
        weight = surgery.weighted_layers(model)["conv2"].weight
        masks.append(weight.detach() != 0)
        return {}

    monkeypatch.setattr(gradual, "train", train)
    apply(network("plain"), PruneGradually(0.2, rounds=3, criterion="random"))
    for earlier, later in itertools.pairwise(masks):
        assert not (later & ~earlier).any()
        assert later.sum() < earlier.sum()


def test_rounds_start_from_the_early_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    early, late = network("plain", seed=1), network("plain", seed=2)
    safetensors.torch.save_file(early.state_dict(), tmp_path / "early.safetensors")
    rounds = []

    def train(step: Any, model: nn.Module, *rest: Any) -> dict[str, Any]:
        rounds.append({name: layer.weight.detach().clone() for name, layer in surgery.weighted_layers(model).items()})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3)
        return {}

    monkeypatch.setattr(gradual, "train", train)
    path = str(tmp_path / "early.safetensors")
    changed, (facts,) = apply(late, PruneGradually(0.5, rounds=2, rewind=path))
    assert len(facts["rewound_to"]) == 16
    for weights in rounds:
        for name, weight in weights.items():
            kept = weight != 0
            assert 0 < kept.float().mean() < 1
            assert torch.equal(weight[kept], surgery.weighted_layers(early)[name].weight[kept])
    first, kept = late.get_submodule("conv2").weight.abs(), rounds[0]["conv2"] != 0
    assert first[kept].min() > first[~kept].max(), "the weights that were trained say what stays"
    norm = changed.get_submodule("bn1")
    torch.testing.assert_close(norm.weight, 3 * early.get_submodule("bn1").weight)


@pytest.mark.parametrize("content", [None, b"nothing", {"conv1.weight": torch.zeros(8, 3, 3, 3)}])
def test_a_file_that_cannot_be_rewound_to(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "early.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        safetensors.torch.save_file(content, path)
    with pytest.raises(RecipeError, match=r"rewind of PruneGradually: got .*early\.safetensors"):
        apply(network("plain"), PruneGradually(rewind=str(path)))


def test_gains_become_sparse_and_are_pruned_by() -> None:
    settings: dict[str, Any] = {"epochs": 20, "lr": 2e-2, "batch": 16}
    plain, _ = apply(network("plain"), FineTune(**settings, distill=0.0))
    slim, (facts,) = apply(network("plain"), Slim(0.05, **settings))
    assert facts["norms"] == 2
    gains, before = (torch.cat([g.detach().abs() for g in gains_of(model)]) for model in (slim, plain))
    assert gains.sum() < 0.7 * before.sum()
    changed, _ = apply(slim, PruneChannels(0.4, criterion="bn_scale", scope="global"))
    assert sum(p.numel() for p in changed.parameters()) < sum(p.numel() for p in slim.parameters())
    assert not any(gain._backward_hooks for gain in gains_of(slim))


@pytest.mark.parametrize("step", [Slim(), PruneGradually()])
def test_without_training_data(step: Step) -> None:
    with pytest.raises(RecipeError, match="needs training data; run without --no-train"):
        apply(network("plain"), step, trainable=False)
