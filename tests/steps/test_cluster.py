"""K-means of a layer's weights: the fixed point of Lloyd's iterations, and a codebook that trains."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from laconic import surgery
from laconic.core import Recipe
from laconic.errors import RecipeError, TrialError
from laconic.steps.cluster.codebook import Codebook, codebook_of, moving
from laconic.steps.cluster.kmeans import Cluster, kmeans
from laconic.steps.prune.weights import PruneWeights
from laconic.steps.quantize.post_training import Quantize
from tests.networks import context, network, task_for


def clustered(name: str = "plain", *steps: object, **settings: object) -> tuple[nn.Module, dict[str, object]]:
    recipe = Recipe((Cluster(**settings), *steps))  # type: ignore[arg-type]
    model, facts = recipe.apply(network(name), task_for(name), context())
    return model, facts[0]


def book_of(model: nn.Module, layer: str) -> Codebook:
    book = codebook_of(model.get_submodule(layer))
    assert book is not None
    return book


def plain_lloyd(weights: np.ndarray, entries: int) -> np.ndarray:
    """Lloyd's iterations as the paper has them, from centroids spread evenly between the extremes."""
    centroids = np.linspace(weights.min(), weights.max(), entries)
    for _ in range(500):
        nearest = np.abs(weights[:, None] - centroids).argmin(1)
        centroids = np.array(
            [weights[nearest == k].mean() if (nearest == k).any() else c for k, c in enumerate(centroids)]
        )
    return centroids


def least_sum(weights: np.ndarray, entries: int) -> float:
    """The least sum of squares of any partition: in one dimension clusters are runs of the sorted weights."""
    order, n = np.sort(weights), len(weights)
    cuts = itertools.combinations(range(1, n), entries - 1)
    return min(sum(float(((p - p.mean()) ** 2).sum()) for p in np.split(order, cut)) for cut in cuts)


@pytest.mark.parametrize("entries", [2, 4, 32])
def test_lloyds_iterations(entries: int) -> None:
    weights = np.random.default_rng(entries).standard_normal(800)
    centroids, index = kmeans(weights, entries, 10_000)
    np.testing.assert_allclose(centroids, plain_lloyd(weights, entries), atol=1e-12)
    assert np.array_equal(index, np.abs(weights[:, None] - centroids).argmin(1))


def test_never_better_than_the_best_and_as_good_where_clusters_are_clear() -> None:
    rng = np.random.default_rng(0)
    for clear in (False, True):
        weights = rng.standard_normal(12) * (0.05 if clear else 1.0) + (np.arange(12) % 3 if clear else 0)
        centroids, index = kmeans(weights, 3, 10_000)
        found, best = float(((weights - centroids[index]) ** 2).sum()), least_sum(weights, 3)
        assert found >= best - 1e-12
        assert not clear or found == pytest.approx(best)


def test_a_weight_is_its_codes_in_its_codebook_and_nothing_else_is_kept() -> None:
    model, facts = clustered(bits=3)
    assert facts == {
        "layers": [[name, 8] for name in ("conv1", "conv2", "fc1", "fc2")],
        "biased": [],
        "stored_bits": 3,
        "computed": "float32",
        "steps": 0,
    }
    for name, layer in surgery.weighted_layers(model).items():
        book = book_of(model, name)
        assert book.codes().dtype == torch.uint8
        assert book.codes().shape == layer.weight.shape
        assert torch.equal(book.codebook()[book.codes().long()], layer.weight)
        centroids, index = kmeans(network("plain").get_submodule(name).weight.detach().flatten().numpy(), 8, 10_000)  # type: ignore[operator]
        assert np.array_equal(book.codes().flatten().numpy(), index)
        gain = book.codebook().numpy() / centroids  # one number for the whole layer
        np.testing.assert_allclose(gain, 1.0 if name.startswith("conv") else gain[0], rtol=1e-5)
    kept = {key: value.numel() for key, value in model.state_dict().items() if "conv2.param" in key}
    assert kept == {
        "conv2.parametrizations.weight.0.index": 8 * 12 * 9,
        "conv2.parametrizations.weight.0.values": 8,
    }


def test_the_gradient_of_a_centroid_is_the_sum_over_its_weights() -> None:
    model, _ = clustered(bits=2)
    dense = network("plain")
    dense.load_state_dict(
        {key: value for key, value in model.state_dict().items() if "parametrizations" not in key}
        | {f"{name}.weight": layer.weight.detach() for name, layer in surgery.weighted_layers(model).items()}
    )
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for one in (model, dense):
        one(x).square().sum().backward()
    for name in ("conv2", "fc1"):
        book, gradient = book_of(model, name), dense.get_submodule(name).weight.grad
        sums = [float(gradient[book.codes() == k].sum()) for k in range(4)]  # type: ignore[index]
        assert book.values.grad is not None
        np.testing.assert_allclose(book.values.grad.squeeze(1), sums, rtol=1e-4)


def test_training_moves_the_codebook_and_no_code() -> None:
    before, _ = clustered(bits=2)
    after, facts = clustered(bits=2, epochs=6, batch=16, lr=1e-2, distill=0.0)
    assert facts["last_loss"] < facts["first_loss"]  # type: ignore[operator]
    for name in ("conv1", "fc2"):
        old, new = book_of(before, name), book_of(after, name)
        assert torch.equal(old.codes(), new.codes())
        assert not torch.equal(old.codebook(), new.codebook())
        assert len(after.get_submodule(name).weight.unique()) <= 4  # type: ignore[operator]


def test_training_moves_codes_too_where_that_is_wanted() -> None:
    before, _ = clustered(bits=2)
    fixed, told_of_fixed = clustered(bits=2, epochs=6, batch=16, lr=1e-2, distill=0.0)
    after, told = clustered(bits=2, codes="trained", epochs=6, batch=16, lr=1e-2, distill=0.0)
    assert told["last_loss"] < told_of_fixed["last_loss"]  # type: ignore[operator]
    assert list(after.state_dict()) == list(fixed.state_dict())  # nothing is left of the float weights
    for name in ("conv1", "conv2", "fc1", "fc2"):
        old, new = book_of(before, name), book_of(after, name)
        assert not torch.equal(old.codes(), new.codes())
        assert torch.equal(new.codebook()[new.codes().long()], after.get_submodule(name).weight)


def test_codes_that_follow_weights_begin_where_they_stand() -> None:
    model, _ = clustered(bits=3)
    layers = surgery.weighted_layers(model)
    books = {name: book_of(model, name) for name in layers}
    with torch.no_grad():
        books["fc2"].values.mul_(1.7)  # as where a layer's spread was matched
    found = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    original = {name: layer.weight for name, layer in surgery.weighted_layers(network("plain")).items()}
    with moving(original, layers):
        for name, layer in layers.items():
            torch.testing.assert_close(layer.weight, found[name])
            layer.weight.sum().backward()
            assert layer.parametrizations["weight"][0].latent.grad.unique().tolist() in ([0, 1], [1])  # type: ignore[index]
    for name, book in books.items():
        assert torch.equal(book_of(model, name).codes(), book.codes())


@pytest.mark.parametrize("codes", ["fixed", "trained"])
def test_zero_is_one_of_the_values_of_a_pruned_layer_and_what_is_zero_stays(codes: str) -> None:
    settings: dict[str, Any] = {"epochs": 2, "lr": 1e-2, "batch": 16, "distill": 0.0}
    steps = (PruneWeights(0.2), Cluster(2, codes=codes, layers={"fc1": 3}, **settings))  # type: ignore[arg-type]
    model, (pruned, facts) = Recipe(steps).apply(network("plain"), task_for("plain"), context())
    assert facts["layers"] == [["conv1", 3], ["conv2", 3], ["fc1", 7], ["fc2", 3]]
    whole, _ = Recipe(steps[:1]).apply(network("plain"), task_for("plain"), context())
    for name, layer in surgery.weighted_layers(model).items():
        before = whole.get_submodule(name).weight
        assert not layer.weight[before == 0].any()
        assert 0 in layer.weight
        assert len(layer.weight.unique()) <= (8 if name == "fc1" else 4)
        if codes == "fixed":
            assert float((layer.weight != 0).float().mean()) == pytest.approx(pruned["layers"][name], abs=1e-5)


def test_the_clusters_of_a_pruned_layer_are_of_what_stays() -> None:
    model, _ = Recipe((PruneWeights(0.2), Cluster(3))).apply(network("plain"), task_for("plain"), context())
    whole, _ = Recipe((PruneWeights(0.2),)).apply(network("plain"), task_for("plain"), context())
    weight, book = whole.get_submodule("conv2").weight.detach().numpy(), book_of(model, "conv2")
    centroids, index = kmeans(weight[weight != 0], 7, 10_000)
    np.testing.assert_allclose(book.codebook().numpy(), centroids, rtol=1e-6)
    assert np.array_equal(book.codes().numpy()[weight != 0], index)


def test_bits_by_globs() -> None:
    _, facts = clustered(bits=2, layers={"conv*": 4, "conv1": 1}, exclude=("fc2",))
    assert facts["layers"] == [["conv1", 2], ["conv2", 16], ["fc1", 4]]
    assert facts["stored_bits"] == 4
    with pytest.raises(RecipeError, match="layers of Cluster names no layer"):
        clustered(layers={"conv9": 4})


def test_fewer_iterations_cost_error_and_save_bits() -> None:
    weights = np.random.default_rng(0).laplace(size=20_000)
    errors, entropies = [], []
    for iterations in (0, 1, 10, 10_000):
        centroids, index = kmeans(weights, 64, iterations)
        assert np.array_equal(index, np.abs(weights[:, None] - centroids).argmin(1))
        shares = np.bincount(index, minlength=64) / len(weights)
        errors.append(float(((weights - centroids[index]) ** 2).mean()))
        entropies.append(-float((shares[shares > 0] * np.log2(shares[shares > 0])).sum()))
        if iterations == 0:
            np.testing.assert_allclose(np.diff(centroids), np.ptp(weights) / 63)
    assert errors == sorted(errors, reverse=True)
    assert entropies == sorted(entropies)
    assert entropies[-1] > entropies[0] + 0.3


def test_what_would_not_get_smaller_stays() -> None:
    model, facts = clustered("mlp", bits=8)  # 4608, 384 and 64 weights; 256 centroids
    assert facts["layers"] == [["1", 256], ["3", 256]]
    assert codebook_of(model.get_submodule("5")) is None


def test_layers_stay_that_are_excluded_kept_or_tied() -> None:
    recipe = Recipe((Cluster(exclude=("fc*",)),))
    _, (facts,) = recipe.apply(network("plain"), task_for("plain"), context(keep=("conv1",)))
    assert [name for name, _ in facts["layers"]] == ["conv2"]
    tied = nn.Sequential(nn.Flatten(), nn.Linear(192, 20), nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 4))
    tied[3].weight = tied[2].weight
    model, (facts,) = Recipe((Cluster(bits=2),)).apply(tied, task_for("plain"), context())
    assert [name for name, _ in facts["layers"]] == ["1", "4"]
    assert model[3].weight is model[2].weight


def test_clustered_again() -> None:
    model, _ = clustered("plain", Cluster(bits=1), bits=3)
    layer = model.get_submodule("fc1")
    assert len(layer.parametrizations["weight"]) == 1  # type: ignore[arg-type, index]
    assert len(layer.weight.unique()) == 2  # type: ignore[operator]


def test_the_original_keeps_a_weight_that_is_computed() -> None:
    """A copy shares the class that torch makes for a parametrized layer."""
    draw = torch.Generator().manual_seed(0)
    model = network("plain")
    nn.utils.parametrizations.weight_norm(model.get_submodule("fc1"))
    x = torch.randn(2, 3, 8, 8, generator=draw)
    before = model(x)
    changed, _ = Recipe((Cluster(bits=2),)).apply(model, task_for("plain"), context())
    assert len(changed.fc1.weight.unique()) == 4
    assert torch.equal(model(x), before)
    assert isinstance(model.get_submodule("fc1"), nn.Linear)


def test_training_needs_data() -> None:
    with pytest.raises(RecipeError, match="Cluster needs training data"):
        Recipe((Cluster(epochs=1),)).apply(network("plain"), task_for("plain", trainable=False), context())


def test_integers_are_not_clustered() -> None:
    with pytest.raises(RecipeError, match="put Cluster before it"):
        Recipe((Quantize(), Cluster())).apply(network("plain"), task_for("plain"), context())


def test_a_weight_that_is_not_finite_fails_the_trial() -> None:
    model = network("plain")
    with torch.no_grad():
        model.get_submodule("fc1").weight[0, 0] = torch.nan  # type: ignore[index]
    with pytest.raises(TrialError, match="fc1"):
        Recipe((Cluster(),)).apply(model, task_for("plain"), context())
