"""Weights that a hash spreads over fewer numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from laconic import hashing, surgery
from laconic.core import Facts, Recipe, Step
from laconic.errors import RecipeError
from laconic.steps.cluster.hashed import Hashed, HashedNets
from laconic.steps.prune.weights import PruneWeights
from laconic.steps.train.fine_tune import FineTune
from tests.networks import context, network, task_for


def hashed(*steps: Step) -> tuple[nn.Module, list[Facts]]:
    model, facts = Recipe(steps).apply(network("plain"), task_for("plain"), context())
    return model, facts


def form_of(model: nn.Module, name: str) -> Hashed:
    (form,) = model.get_submodule(name).parametrizations["weight"]  # type: ignore[index, union-attr]
    assert isinstance(form, Hashed)
    return form


def test_a_number_is_the_mean_of_its_weights_with_their_signs() -> None:
    model, (facts,) = hashed(HashedNets(0.25))
    original = surgery.weighted_layers(network("plain"))
    assert facts["layers"] == [[name, round(layer.weight.numel() / 4)] for name, layer in original.items()]
    for name, entries in facts["layers"]:
        weight, before = (x.get_submodule(name).weight.detach().numpy().ravel() for x in (model, network("plain")))  # type: ignore[operator]
        places = hashing.places(len(weight), entries)
        signs = np.where(places < entries, 1, -1)
        for k in np.unique(places % entries)[:20]:
            mine = places % entries == k
            np.testing.assert_allclose(weight[mine] * signs[mine], (before * signs)[mine].mean(), rtol=1e-5)


def test_the_model_holds_the_numbers_alone() -> None:
    model, _ = hashed(HashedNets(0.25))
    kept = {key: value.numel() for key, value in model.state_dict().items() if "conv2.param" in key}
    assert kept == {"conv2.parametrizations.weight.0.values": 8 * 12 * 9 // 4}


def test_the_gradient_of_a_number_is_the_signed_sum_over_its_weights() -> None:
    model, _ = hashed(HashedNets(0.1))
    form = form_of(model, "fc1")
    weight: Any = model.get_submodule("fc1").weight
    pull = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    (weight * pull).sum().backward()
    places, entries = form.places.numpy(), form.hashed
    signed = pull.numpy().ravel() * np.where(places < entries, 1, -1)
    sums = np.bincount(places % entries, weights=signed, minlength=entries)
    assert form.values.grad is not None
    np.testing.assert_allclose(form.values.grad.squeeze(1), sums, rtol=1e-4, atol=1e-5)


def test_training_goes_through_and_brings_back_what_the_means_lost() -> None:
    settings: dict[str, Any] = {"epochs": 12, "lr": 1e-2, "batch": 16, "distill": 0.0}
    inside, (facts,) = hashed(HashedNets(0.25, **settings))
    behind, _ = hashed(HashedNets(0.25), FineTune(**settings))
    assert facts["last_loss"] < 0.7 * facts["first_loss"]
    for name in ("conv1", "fc2"):
        assert torch.equal(form_of(inside, name).values, form_of(behind, name).values)
        assert len(inside.get_submodule(name).weight.abs().unique()) <= form_of(inside, name).hashed  # type: ignore[operator]


def test_layers_by_globs() -> None:
    _, (facts,) = hashed(HashedNets(0.5, layers={"fc*": 0.1, "conv1": 1.0}, exclude=("fc2",)))
    sizes = {name: layer.weight.numel() for name, layer in surgery.weighted_layers(network("plain")).items()}
    assert facts["layers"] == [["conv2", sizes["conv2"] // 2], ["fc1", round(sizes["fc1"] / 10)]]


def test_a_weight_of_another_form_is_refused() -> None:
    with pytest.raises(RecipeError, match="HashedNets of conv1, whose weight has another form already"):
        hashed(PruneWeights(0.5), HashedNets())
