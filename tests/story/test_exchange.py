"""Layers exchanged for those of the same network in another width: what a recipe with that width there would move."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from laconic.core import Recipe, Target
from laconic.fake_quantize import float_values
from laconic.models.loaded import LoadedModel
from laconic.steps.quantize.post_training import Quantize
from laconic.story.evaluate import Evaluator, Job
from laconic.story.probes import Probes
from tests.networks import network, task_for


@pytest.fixture
def evaluator(tmp_path: Path) -> Evaluator:
    loaded = LoadedModel(module=network("residual"), source="residual", input_names=("input",))
    job = Job(lambda progress: (loaded, task_for("residual")), Target("onnxruntime"), 0, (), tmp_path)
    return Evaluator(job, lambda text, fraction: None)


@pytest.fixture
def probes(evaluator: Evaluator) -> Probes:
    return Probes(evaluator.model, evaluator.task, evaluator.context)


def nearest(bits: int, **layers: int) -> Recipe:
    """Without correction of biases: each layer is rounded for itself alone."""
    named = {name.replace("__", "."): b for name, b in layers.items()}
    return Recipe((Quantize(bits=bits, layers=named, bias_correction=False),))


def outputs(recipe: Recipe, probes: Probes, evaluator: Evaluator) -> torch.Tensor:
    """With activations in float."""
    model, _ = recipe.apply(probes.model, probes.task, evaluator.context)
    float_values(model.eval())
    with torch.no_grad():
        return model(*probes.inputs.values()).double()


def test_a_layer_of_another_width(evaluator: Evaluator, probes: Probes) -> None:
    rows = {str(bits): nearest(bits).to_json() for bits in (3, 4, 8)}
    damages = evaluator.exchange(rows, "8", "key")["damages"]
    assert {"stem.0", "blocks.1.conv2", "head"} <= set(damages)
    assert all(set(of_layer) == {"3", "4", "8"} and of_layer["8"] == 0 for of_layer in damages.values())
    base, spread = outputs(nearest(8), probes, evaluator), (probes.wanted - probes.wanted.mean(0)).square().sum()
    for name, bits in (("stem.0", 3), ("blocks.1.conv2", 4), ("head", 3)):
        moved = outputs(nearest(8, **{name.replace(".", "__"): bits}), probes, evaluator) - base
        alone = float(moved.square().sum() / spread)
        assert damages[name][str(bits)] == pytest.approx(alone, rel=1e-6)
    assert damages["stem.0"]["3"] > damages["stem.0"]["4"] > 0


def test_a_width_that_fails_is_missing(evaluator: Evaluator) -> None:
    failing = [{"step": "Quantize", "bits": 4, "layers": {"nowhere": 8}}]
    found = evaluator.exchange({"4": nearest(4).to_json(), "8": failing}, "4", "key")
    assert "nowhere" in found["error"]
    assert all(set(of_layer) == {"4"} for of_layer in found["damages"].values())
    assert evaluator.exchange({"4": failing, "8": nearest(8).to_json()}, "4", "key")["damages"] == {}
