"""SmoothQuant: outliers move from activations into weights, and the function stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Recipe
from laconic.errors import RecipeError
from laconic.runtime.difference import relative_error
from laconic.steps.quantize.post_training import Quantize
from laconic.steps.quantize.smooth import Smooth
from tests.networks import NETWORKS, context, inputs_of, network, task_for, tensors


def smoothed(model: nn.Module, name: str = "plain", **settings: Any) -> tuple[nn.Module, dict[str, Any]]:
    changed, (facts,) = Recipe((Smooth(**settings),)).apply(model, task_for(name), context())
    return changed, facts


def outputs(model: nn.Module, inputs: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        return np.concatenate([y.numpy().ravel() for y in surgery.call(model, tensors(inputs)).values()])


class Outliers(nn.Module):
    """Tokens behind a norm, three of whose channels are a hundred times larger; two layers read them."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 2, 2)
        self.norm = norm
        self.query, self.value = nn.Linear(16, 16), nn.Linear(16, 16, bias=False)
        self.head = nn.Linear(16, 4)
        with torch.no_grad():
            self.norm.weight[3::5] *= 100
            for layer in (self.query, self.value):
                layer.weight[:, 3::5] /= 30

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.patches(x).flatten(2).transpose(1, 2))  # n 16 16
        return self.head((torch.sigmoid(self.query(x)) * self.value(x)).mean(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_stays(name: str) -> None:
    model, _ = smoothed(network(name), name)
    inputs = inputs_of(name, 64, seed=5)
    assert relative_error(outputs(model, inputs), outputs(network(name), inputs)) < 1e-4


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_factors_are_those_of_the_paper(norm: Any, alpha: float) -> None:
    model = Outliers(norm(16)).eval()
    changed, facts = smoothed(model, alpha=alpha)
    assert facts["smoothed"][0][:2] == ["norm", ["query", "value"]]
    inputs = tensors(task_for().calibration_batch().inputs)
    with torch.no_grad():
        x = model.norm(model.patches(inputs["x"]).flatten(2).transpose(1, 2)).abs().amax((0, 1))
        weight = torch.cat([model.query.weight, model.value.weight]).abs().amax(0)
        wanted = x**alpha / weight ** (1 - alpha)
        assert torch.allclose(changed.get_submodule("norm").weight * wanted, model.norm.weight, rtol=1e-4)
        for name in ("query", "value"):
            found = changed.get_submodule(name).weight
            assert torch.allclose(found, model.get_submodule(name).weight * wanted, rtol=1e-4)
    unseen = inputs_of("plain", 64, seed=5)
    assert relative_error(outputs(changed, unseen), outputs(model, unseen)) < 1e-4


def test_integers_lose_less() -> None:
    inputs, errors = inputs_of("plain", 64, seed=5), {}
    for steps in ((), (Smooth(),)):
        model, _ = Recipe((*steps, Quantize())).apply(Outliers(nn.LayerNorm(16)), task_for(), context())
        errors[len(steps)] = relative_error(outputs(model, inputs), outputs(Outliers(nn.LayerNorm(16)), inputs))
    assert errors[1] < 0.5 * errors[0]


def test_a_norm_that_others_read_too_stays() -> None:
    class Both(Outliers):
        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.patches(x).flatten(2).transpose(1, 2))
            return self.head((self.query(x) + x).mean(1))

    model = Both(nn.LayerNorm(16))
    changed, facts = smoothed(model)
    assert facts["smoothed"] == []
    assert torch.equal(changed.get_submodule("norm").weight, model.norm.weight)


def test_dead_channels_and_outliers() -> None:
    model = Outliers(nn.LayerNorm(16))
    with torch.no_grad():
        model.norm.weight[2] = model.norm.bias[2] = 0
        model.query.weight[:, 4] = model.value.weight[:, 4] = 0
        model.norm.weight[7] = 1e6
    changed, _ = smoothed(model)
    assert all(torch.isfinite(value).all() for value in changed.state_dict().values())
    inputs = inputs_of("plain", 32, seed=5)
    assert relative_error(outputs(changed, inputs), outputs(model, inputs)) < 1e-3


def test_batch_norm_in_front_of_relu() -> None:
    class Preactivated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(F.relu(self.norm(x))).mean((2, 3))

    model = Preactivated().eval()
    changed, facts = smoothed(model)
    assert facts["smoothed"][0][:2] == ["norm", ["conv"]]
    assert not torch.equal(changed.get_submodule("norm").weight, model.norm.weight)
    inputs = inputs_of("plain", 32, seed=5)
    assert relative_error(outputs(changed, inputs), outputs(model, inputs)) < 1e-5


def test_after_quantize_is_refused() -> None:
    with pytest.raises(RecipeError, match="Smooth after Quantize"):
        Recipe((Quantize(), Smooth())).apply(network("plain"), task_for(), context())
