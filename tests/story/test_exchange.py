"""Layers exchanged for those of the same network in another width: what a recipe with that width there would give."""

from __future__ import annotations

from pathlib import Path

import pytest

from laconic.core import Recipe, Target
from laconic.models.loaded import LoadedModel
from laconic.steps.quantize.post_training import Quantize
from laconic.story.evaluate import Evaluator, Job
from tests.networks import network, task_for


@pytest.fixture
def evaluator(tmp_path: Path) -> Evaluator:
    loaded = LoadedModel(module=network("residual"), source="residual", input_names=("input",))
    job = Job(lambda progress: (loaded, task_for("residual")), Target("onnxruntime"), 0, (), tmp_path)
    return Evaluator(job, lambda text, fraction: None)


def nearest(bits: int, **layers: int) -> Recipe:
    """Without correction of biases: each layer is rounded for itself alone."""
    named = {name.replace("__", "."): b for name, b in layers.items()}
    return Recipe((Quantize(bits=bits, layers=named, bias_correction=False),))


def test_a_layer_of_another_width(evaluator: Evaluator) -> None:
    rows = {str(bits): nearest(bits).to_json() for bits in (3, 4, 8)}
    damages = evaluator.exchange(rows, "4", "key")["damages"]
    assert {"stem.0", "blocks.1.conv2", "head"} <= set(damages)
    assert all(set(of_layer) == {"3", "4", "8"} for of_layer in damages.values())
    for name, bits in (("stem.0", 3), ("blocks.1.conv2", 8), ("head", 4)):
        alone = evaluator.probe(nearest(4, **{name.replace(".", "__"): bits}).to_json(), "key")["damage"]
        assert damages[name][str(bits)] == pytest.approx(alone, rel=1e-6)
    assert damages["stem.0"]["3"] > damages["stem.0"]["4"] > damages["stem.0"]["8"]


def test_a_width_that_fails_is_missing(evaluator: Evaluator) -> None:
    failing = [{"step": "Quantize", "bits": 4, "layers": {"nowhere": 8}}]
    found = evaluator.exchange({"4": nearest(4).to_json(), "8": failing}, "4", "key")
    assert "nowhere" in found["error"]
    assert all(set(of_layer) == {"4"} for of_layer in found["damages"].values())
    assert evaluator.exchange({"4": failing, "8": nearest(8).to_json()}, "4", "key")["damages"] == {}
