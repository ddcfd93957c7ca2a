"""laconic from Python: models and data that are in memory, scores of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import laconic
from laconic.core import Recipe
from laconic.errors import DataError, FolderError, GoalError, ModelError, RecipeError, TargetError
from laconic.steps import STEPS
from laconic.story.reporter import Reporter
from tests.stories import inline, zoo

__all__ = ["inline"]

FOUND = load_digits()
X, Y = (FOUND.images[:, None] / 16).astype(np.float32), FOUND.target
SMALL = laconic.Goal.parse("size", max_drop="5%", budget="1trials")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return laconic.load_model(zoo()).module


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def share_of_the_right_class(outputs: Any, targets: Any) -> Any:
    """A score of one's own: the probability that the model gives to what is right."""
    logits = next(iter(outputs.values())).astype(np.float64)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (odds / odds.sum(axis=1, keepdims=True))[np.arange(len(targets)), targets]


def test_a_score_of_ones_own_in_the_real_worker(model: nn.Module, tmp_path: Path) -> None:
    task = laconic.from_arrays(X, Y, score=share_of_the_right_class, trainable=False)
    found = laconic.shrink(model, task, SMALL, out=tmp_path / "o")
    assert found.certified
    assert found.summary["certificate"]["metric"] == "share_of_the_right_class"
    assert 0.9 < found.summary["baseline"]["score"] < 1
    assert found.summary["ratio"]["size"] > 2.5
    certificate = found.package.manifest["certificate"]
    assert (certificate["test"], certificate["lost"]) == ("betting, paired", None)
    assert (tmp_path / "o" / "laconic.log").read_text() == ""


@pytest.mark.usefixtures("inline")
def test_a_module_in_training_mode_and_loaders(model: nn.Module, tmp_path: Path) -> None:
    """It is measured in evaluation mode, and left as it was."""
    data = TensorDataset(torch.as_tensor(X), torch.as_tensor(Y))
    train = DataLoader(Subset(data, range(900)), batch_size=64, shuffle=True)
    rest = DataLoader(Subset(data, range(900, len(data))), batch_size=64)
    model.train()
    before = state(model)
    found = laconic.shrink(model, laconic.from_loaders(train, rest, trainable=False), SMALL, out=str(tmp_path / "o"))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.eval()
    assert found.certified
    assert found.summary["baseline"]["score"] > 0.93
    assert found.package.folder == tmp_path / "o"
    assert found.package.manifest["splits"]["holdout"] == 449
    assert found.package.manifest["model"]["source"] == "a torch.nn.Module"


@pytest.mark.usefixtures("inline")
def test_a_recipe_a_reporter_and_parts_of_ones_own(model: nn.Module, tmp_path: Path) -> None:
    class Listener(Reporter):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def tried(self, trial: Any) -> None:
            self.heard.append(str(trial.recipe))

    listener, recipe = Listener(), Recipe((STEPS["Quantize"](ranges="minmax"),))
    parts = {"train": (X[:500], Y[:500]), "search": (X[500:900], Y[500:900]), "holdout": (X[900:], Y[900:])}
    task = laconic.from_splits(parts, trainable=False)
    found = laconic.shrink(model, task, SMALL, out=tmp_path / "o", recipe=recipe, reporter=listener)
    assert found.summary["best"]["recipe"] == [{"step": "Quantize", "ranges": "minmax"}]
    assert listener.heard == ["the original", "Quantize(ranges minmax)"]
    assert found.package.manifest["splits"] == {"train": 128, "search": 400, "holdout": 897}
    assert found.summary["certificate"]["n"] == 897


@pytest.mark.usefixtures("inline")
def test_bad_input_is_raised_before_anything_is_written(model: nn.Module, tmp_path: Path) -> None:
    task = laconic.from_arrays(X, Y, trainable=False)
    out = tmp_path / "o"
    with pytest.raises(TargetError, match="unknown runtime: got 'tflite'"):
        laconic.shrink(model, task, SMALL, out=out, target="tflite")
    with pytest.raises(RecipeError, match="the recipe has no steps"):
        laconic.shrink(model, task, SMALL, out=out, recipe=Recipe())
    with pytest.raises(RecipeError, match="--keep names no layer: got 'head'"):
        laconic.shrink(model, task, SMALL, out=out, keep=["head"])
    with pytest.raises(DataError, match="the model does not take these samples"):
        laconic.shrink(model, laconic.from_arrays(X[:, 0], Y), SMALL, out=out)
    broken = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    broken[1].weight.data[0, 0] = torch.inf
    with pytest.raises(ModelError, match=r"the weights are not finite: tensor 1\.weight"):
        laconic.shrink(broken, task, SMALL, out=out)
    with pytest.raises(GoalError, match="the budget ended before a candidate was tried"):
        laconic.shrink(model, task, laconic.Goal(budget=laconic.Budget(seconds=None, trials=0)), out=out)
    assert not out.exists()
    (tmp_path / "mine").write_text("text")
    with pytest.raises(FolderError, match="the output folder holds something else"):
        laconic.shrink(model, task, SMALL, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
