"""Product quantization: the least error of the output, not of the weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Recipe
from laconic.steps.cluster import product
from laconic.steps.cluster.codebook import codebook_of
from laconic.steps.cluster.product import ProductQuantize, cut
from tests.networks import context, network, task_for


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(n: int = 300, blocks: int = 5, d: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Sub-vectors, their blocks, and metrics with a direction each that matters most."""
    draw = generator()
    vectors, x = torch.randn(n, d, generator=draw), torch.randn(blocks, 50, d, generator=draw)
    x *= torch.exp(torch.randn(blocks, 1, d, generator=draw))
    return vectors, torch.arange(n) % blocks, x.transpose(1, 2) @ x / 50


def errors(vectors: Tensor, blocks: Tensor, metric: Tensor, centroids: Tensor) -> Tensor:
    """(c - v)' M (c - v) for every sub-vector and centroid, written out."""
    apart = centroids[None] - vectors[:, None]  # n k d
    return torch.einsum("nkd,nde,nke->nk", apart, metric[blocks], apart)


def test_every_code_is_the_best_and_every_centroid_where_its_members_want_it() -> None:
    vectors, blocks, metric = problem()
    codes, centroids = product.kmeans(vectors, blocks, metric, 8, generator())
    found = errors(vectors, blocks, metric, centroids)
    chosen = found.gather(1, codes.long()[:, None]).squeeze(1)
    assert torch.all(chosen <= found.min(1).values * (1 + 1e-4) + 1e-5)
    for k in range(8):
        mine = codes == k
        pull = (metric[blocks[mine]] @ (centroids[k] - vectors[mine])[:, :, None]).sum(0)
        assert pull.abs().max() < 1e-3 * metric.abs().max() * int(mine.sum())


def test_less_output_error_than_k_means_of_the_weights() -> None:
    vectors, blocks, metric = problem(n=600)
    codes, centroids = product.kmeans(vectors, blocks, metric, 16, generator())
    usual = KMeans(16, n_init=3, random_state=0).fit(vectors.numpy())
    ours = errors(vectors, blocks, metric, centroids).gather(1, codes.long()[:, None]).mean()
    theirs = errors(vectors, blocks, metric, torch.as_tensor(usual.cluster_centers_)).numpy()
    assert ours < 0.8 * theirs[np.arange(600), usual.labels_].mean()


def test_few_different_sub_vectors_are_all_found() -> None:
    vectors = torch.randn(5, 3, generator=generator())[torch.arange(200) % 5]
    _, blocks, metric = problem(200)
    codes, centroids = product.kmeans(vectors, blocks, metric, 8, generator(3))
    assert torch.allclose(centroids[codes.long()], vectors, atol=1e-5)


def test_the_metric_is_of_what_each_sub_vector_reads() -> None:
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    x = torch.randn(2, 4, 7, 7, generator=generator())
    vectors, blocks = cut(conv, 4)
    assert torch.equal(vectors, conv.weight.detach().reshape(12, 9))
    assert blocks.tolist() == [0, 1] * 3 + [2, 3] * 3  # input channel, for each output channel of either group
    args = (x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    found = product._metric(conv, F.conv2d(*args), args, {}, 9, generator())
    patches = F.unfold(x, 3, padding=1, stride=2).reshape(2, 4, 9, 16).movedim(1, 0).movedim(-1, -2).reshape(4, 32, 9)
    wanted = patches.transpose(1, 2) @ patches / 32
    damping = 0.01 * wanted.diagonal(dim1=1, dim2=2).mean()
    torch.testing.assert_close(found, wanted + damping * torch.eye(9))


@pytest.mark.parametrize(
    ("layer", "length", "d"),
    [
        (nn.Linear(12, 5), 8, 6),
        (nn.Linear(7, 5), 4, 1),
        (nn.Conv2d(8, 4, 1), 4, 4),
        (nn.Conv2d(8, 4, 3), 4, 9),
        (nn.Conv2d(8, 4, 7), 4, 7),
        (nn.Conv1d(8, 4, 3), 4, 3),
    ],
)
def test_lengths(layer: Any, length: int, d: int) -> None:
    assert cut(layer, length)[0].shape[1] == d


def test_each_layer_is_chosen_from_what_the_quantized_network_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    read: dict[str, Tensor] = {}
    measure = product._metric

    def remember(layer: Any, result: Tensor, args: Any, *rest: Any) -> Tensor:
        read[tuple(layer.weight.shape)] = args[0].clone()  # type: ignore[index]
        return measure(layer, result, args, *rest)

    monkeypatch.setattr(product, "_metric", remember)
    task = task_for("mlp", 16)
    model, (facts,) = Recipe((ProductQuantize(entries=4),)).apply(network("mlp"), task, context())
    assert [name for name, *_ in facts["layers"]] == ["1", "3", "5"]
    with torch.no_grad():
        x = torch.as_tensor(task.calibration_batch().inputs["x"])
        torch.testing.assert_close(read[16, 24], model[:3](x))
        assert not torch.allclose(read[16, 24], network("mlp")[:3](x))  # type: ignore[index]


def test_a_weight_is_its_codes_in_its_codebook() -> None:
    model, (facts,) = Recipe((ProductQuantize(entries=16),)).apply(network("plain"), task_for("plain"), context())
    assert facts["layers"] == [["conv1", 6, 9], ["conv2", 16, 9], ["fc1", 16, 4], ["fc2", 4, 4]]
    for name, entries, length in facts["layers"]:
        layer = surgery.weighted_layers(model)[name]
        book = codebook_of(layer)
        assert book is not None
        assert book.codebook().shape == (entries, length)
        assert book.codes().dtype == torch.uint8
        assert torch.equal(book.codebook()[book.codes().long()].reshape(layer.weight.shape), layer.weight)
