"""Product quantization: the weights of a layer share a few sub-vectors, chosen for what the layer gives.

Jegou, Douze and Schmid 2011 (IEEE TPAMI 33(1)); for networks Wu et al. 2016, arXiv 1512.06473, and Stock et al. 2020,
arXiv 1907.05686. A weight is cut into sub-vectors of d numbers: the spatial kernels of a convolution, d consecutive
inputs of a linear layer or of a 1x1 convolution. K sub-vectors per layer, the codebook, stand for all of them, and are
chosen so that the layer's output changes little: ||x (W - W')||^2 over calibration samples (arXiv 1907.05686, eq. 2),
by k-means with that error in place of the distance (eq. 3 and 4). Layers are quantized one after the other, in the
order in which they run, each from what the already quantized network gives to it.

Written out for one sub-vector v that reads the inputs x_b, the error of centroid c is (c - v)' M_b (c - v) with
M_b = E[x_b x_b']. Deviation: each place of a layer keeps its own M_b, where the paper pools them over the places
(its x~ is all of them, one below the other); assigning costs the same, and a centroid is then the solution of
(sum M_b) c = sum M_b v over its members. A centroid without members moves to the sub-vector with the largest error.
M_b gets 1 % of the mean square of all inputs on its diagonal, for inputs that are never active.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Context, Facts, Task
from laconic.errors import RecipeError
from laconic.steps.cluster.codebook import LARGEST, install, install_empty, open_layers
from laconic.steps.cluster.matching import match, remember, to_be_biased
from laconic.steps.quantize.layerwise import _rows
from laconic.steps.quantize.observe import calibration_inputs
from laconic.steps.settings import check_types

_ITERATIONS = 25
_MEMBERS = 4  # sub-vectors per centroid, at least
_LARGEST_KERNEL = 25
_PLACES = 2**13
_CHUNK = 2**14
_DAMPING = 0.01


@dataclass(frozen=True)
class ProductQuantize:
    """Let each layer's weights share ``entries`` sub-vectors: spatial kernels, or up to ``length`` consecutive inputs
    where the kernel is a point. ``exclude``: globs of layers left as they are.

    The file stores a code per sub-vector and a codebook; the runtime computes in float32.
    """

    entries: int = 256
    length: int = 4
    exclude: tuple[str, ...] = ()

    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_types(self)
        if not 2 <= self.entries <= LARGEST:
            raise RecipeError("entries of ProductQuantize", got=self.entries, wanted=f"2 to {LARGEST}")
        if not 1 <= self.length <= _LARGEST_KERNEL:
            raise RecipeError("length of ProductQuantize", got=self.length, wanted=f"1 to {_LARGEST_KERNEL}")

    @torch.no_grad()
    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        inputs = calibration_inputs(task)
        layers = open_layers(model.eval(), (*self.exclude, *context.keep), "ProductQuantize")
        before = remember(model, inputs, layers)
        graph = surgery.trace(model, {name: x[:2] for name, x in inputs.items()})
        calls = [call for call in graph.calls if call.family in ("conv", "linear") and call.module in layers]
        first = {call.module: call.key for call in reversed(calls)}  # a layer is quantized at its first call
        generator = torch.Generator().manual_seed(context.seed)
        made: list[list[Any]] = []
        bare = to_be_biased(before, layers)

        def handler(key: str, module: str, func: Any, args: Any, kwargs: Any) -> Any:
            result = func(*args, **kwargs)
            if first.get(module) != key:
                return result
            layer = layers[module]
            vectors, blocks = cut(layer, self.length)
            entries = min(self.entries, len(vectors) // _MEMBERS)
            if entries < 2:
                return result
            context.progress(f"quantizing {module}", len(made) / len(first))
            metric = _metric(layer, result, args, kwargs, vectors.shape[1], generator)
            index, values = kmeans(vectors, blocks, metric, entries, generator)
            install(layer, index, values)
            made.append([module, *values.shape])
            result = func(args[0], layer.weight, *args[2:], **kwargs)
            return match(key, layer, before[key], result) if key in before else result

        with surgery.watched(model, handler):
            surgery.call(model, inputs)
        facts = {"layers": made, "biased": [name for name, *_ in made if name in bare]}
        return model, {**facts, "stored_bits": _stored_bits(layers, made), "computed": "float32"}

    def restore(self, model: Any, facts: Facts) -> Any:
        for name, entries, length in facts["layers"]:
            install_empty(model.get_submodule(name), entries, length)
        for name in facts["biased"]:
            surgery.give_bias(model.get_submodule(name))
        return model


def cut(layer: surgery.Layer, length: int) -> tuple[Tensor, Tensor]:
    """The layer's sub-vectors (n, d), and the block of inputs that each reads (n,): groups times inputs / d."""
    weight = layer.weight.detach()
    kernel, inputs = math.prod(weight.shape[2:]), weight[0].numel()
    whole, most = (inputs, length) if kernel == 1 else (kernel, max(length, _LARGEST_KERNEL))
    d = max(d for d in range(1, most + 1) if whole % d == 0)
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    blocks = torch.arange(groups * inputs // d).reshape(groups, 1, -1).expand(-1, len(weight) // groups, -1)
    return weight.reshape(-1, d), blocks.reshape(-1)


def _metric(
    layer: surgery.Layer, result: Tensor, args: Any, kwargs: Any, length: int, generator: torch.Generator
) -> Tensor:
    """E[x_b x_b'] of each block of inputs, over places of the output drawn at random: (blocks, d, d)."""
    axis = result.dim() - 1 if isinstance(layer, nn.Linear) else 1
    places = torch.randperm(result.numel() // result.shape[axis], generator=generator)[:_PLACES]
    rows = _rows(layer, args, kwargs, places)  # g r k
    x = rows.reshape(len(rows), rows.shape[1], -1, length).transpose(1, 2).flatten(0, 1)  # gb r d
    metric: Tensor = x.transpose(1, 2) @ x / x.shape[1]
    mean_square = metric.diagonal(dim1=1, dim2=2).mean()
    return metric + (_DAMPING * mean_square).clamp_min(torch.finfo(x.dtype).tiny) * torch.eye(length)


def kmeans(
    vectors: Tensor, blocks: Tensor, metric: Tensor, entries: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Codes (n,) uint8 and at most ``entries`` centroids (K, d) for ``vectors`` (n, d), each with the metric of its
    block (blocks, d, d); centroids begin as different vectors, drawn at random."""
    weighted = (metric[blocks] @ vectors[:, :, None]).squeeze(2)  # M v: n d
    own = (weighted * vectors).sum(1)  # v' M v: n
    distinct: Tensor = torch.unique(vectors, dim=0)
    centroids = distinct[torch.randperm(len(distinct), generator=generator)[:entries]]
    entries = len(centroids)
    index = before = torch.full((len(vectors),), -1)
    for _ in range(_ITERATIONS):
        index, errors = _assign(weighted, own, blocks, metric, centroids)
        if torch.equal(index, before):
            break
        before = index
        counts = torch.bincount(index * len(metric) + blocks, minlength=entries * len(metric))
        sums = counts.reshape(entries, -1).double() @ metric.flatten(1).double()
        pulls = torch.zeros(centroids.shape, dtype=torch.double).index_add_(0, index, weighted.double())
        members = torch.bincount(index, minlength=entries) > 0
        solved = torch.linalg.solve(sums.reshape(-1, *metric.shape[1:])[members], pulls[members])
        centroids[members] = solved.to(centroids.dtype)
        centroids[~members] = vectors[errors.topk(int((~members).sum())).indices]
    else:
        index, _ = _assign(weighted, own, blocks, metric, centroids)
    return index.to(torch.uint8), centroids


def _assign(weighted: Tensor, own: Tensor, blocks: Tensor, metric: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """The centroid of the least error for each sub-vector, and that error: c' M c - 2 c' M v + v' M v."""
    lengths = torch.einsum("kd,bde,ke->bk", centroids, metric, centroids)
    best = [
        (lengths[b] - 2 * w @ centroids.T).min(1)
        for w, b in zip(torch.split(weighted, _CHUNK), torch.split(blocks, _CHUNK), strict=True)
    ]
    return torch.cat([found.indices for found in best]), torch.cat([found.values for found in best]) + own


def _stored_bits(layers: dict[str, surgery.Layer], made: list[list[Any]]) -> float:
    """Bits per weight of the layers quantized, codebooks included; codes as the file packs them."""
    bits = weights = 0.0
    for name, entries, length in made:
        n = layers[name].weight.numel()
        bits += n / length * math.log2(entries) + 32 * entries * length
        weights += n
    return round(bits / weights, 3) if weights else 32.0
