"""Trained quantization of Deep Compression: the weights of a layer share a few values, found by k-means.

Han, Mao and Dally 2016, arXiv 1510.00149, section 3. Per layer, n weights are put into K = 2^bits clusters that
minimise sum_i sum_{w in c_i} |w - c_i|^2 (eq. 2) by Lloyd's iterations from centroids spread evenly between the least
and the largest weight. That *linear* initialisation keeps centroids among the few large weights, which matter most
(section 3.2). Weights that pruning made zero stay zero, which is then one of the 2^bits values; the clusters are of the
others (section 3). In one dimension the least sum could be found exactly by dynamic programming; it would give those
centroids up for the many small weights. A cluster that nobody is nearest to keeps its place.

Deviation: what the layers give is then brought back to its mean and spread, from calibration samples without labels
(:mod:`laconic.steps.cluster.matching`).

Last, the centroids are trained, each by the sum of the gradients of its weights (section 3.3), while the codes stay,
or, with ``codes`` trained, while each weight goes on being trained and takes the centroid nearest to it. Deviation:
with everything else that is trainable, batch norms included, and towards the original network as well as the labels. A
layer with so few weights that it would not get smaller is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from laconic import surgery
from laconic.core import Array, Context, Facts, Task
from laconic.errors import RecipeError
from laconic.steps.cluster.codebook import install, install_empty, moving, open_layers
from laconic.steps.cluster.matching import Before, match, remember, to_be_biased
from laconic.steps.prune.mask import mask_of
from laconic.steps.quantize.observe import calibration_inputs
from laconic.steps.quantize.trained import check_data, check_training, computed_in_float, train


@dataclass(frozen=True)
class Cluster:
    """Let each layer's weights share 2^``bits`` values, or as many as ``layers`` gives bits for layers by globs, and
    train these for ``epochs`` with AdamW at ``lr``; ``distill`` is the share of the distillation loss. ``codes``: which
    value a weight has stays as it was found, or is trained too. ``iterations`` of Lloyd's, at most: as many as it takes
    until nothing moves, or so few that the values stay about evenly spread, which costs a little more error and an
    entropy coder fewer bits. ``exclude``: globs of layers left as they are.

    The file stores ``bits`` per weight and a codebook; the runtime computes in float32.
    """

    bits: int = 4
    layers: Mapping[str, int] = field(default_factory=dict)
    codes: Literal["fixed", "trained"] = "fixed"
    iterations: int = 10_000
    exclude: tuple[str, ...] = ()
    epochs: float = 0.0
    lr: float = 1e-3
    batch: int = 64
    distill: float = 0.5

    version: ClassVar[int] = 3

    def __post_init__(self) -> None:
        check_training(self)
        for name, bits in {"bits": self.bits, **self.layers}.items():
            if not 1 <= bits <= 8:
                raise RecipeError(f"Cluster of {name}", got=bits, wanted="1 to 8 bits")
        if self.iterations < 0:
            raise RecipeError("iterations of Cluster", got=self.iterations, wanted="0 or more")

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        check_data(self, task)
        inputs = calibration_inputs(task)
        surgery.require_matches("layers of Cluster", self.layers, list(surgery.weighted_layers(model)))
        layers = {
            name: layer
            for name, layer in open_layers(model.eval(), (*self.exclude, *context.keep), "Cluster").items()
            if layer.weight.numel() * (32 - self._bits(name)) > 32 * 2 ** self._bits(name)
        }
        context.progress("observing layers", 0.0)
        before = remember(model, inputs, layers)
        weights = {name: layer.weight.detach() for name, layer in layers.items()}
        facts = {
            "layers": [[name, _share(layer, 2 ** self._bits(name), self.iterations)] for name, layer in layers.items()],
            "biased": to_be_biased(before, layers),
            **computed_in_float(max(map(self._bits, layers), default=self.bits)),
        }
        context.progress("correcting layers", 0.0)
        _correct(model, inputs, layers, before)
        with moving(weights, layers) if self.codes == "trained" else nullcontext():
            facts |= train(self, model, task, context)
        return model, facts

    def restore(self, model: Any, facts: Facts) -> Any:
        for name, entries in facts["layers"]:
            install_empty(model.get_submodule(name), entries, 1)
        for name in facts["biased"]:
            surgery.give_bias(model.get_submodule(name))
        return model

    def _bits(self, name: str) -> int:
        named = surgery.stated(name, self.layers)
        return self.bits if named is None else named


def _share(layer: surgery.Layer, values: int, iterations: int) -> int:
    """Let the weights of ``layer`` share so many ``values``, zero among them where it is pruned; how many centroids."""
    masked, weights = mask_of(layer), layer.weight.detach().flatten().numpy()
    stay = np.ones(len(weights), bool) if masked is None else masked.mask.flatten().numpy()
    entries = values if stay.all() else values - 1
    index = np.zeros(len(weights), np.uint8)
    centroids, index[stay] = kmeans(weights[stay], entries, iterations)
    install(layer, torch.from_numpy(index), torch.from_numpy(centroids)[:, None].to(layer.weight.dtype))
    return entries


@torch.no_grad()
def _correct(
    model: Any, inputs: Mapping[str, Tensor], layers: Mapping[str, surgery.Layer], before: Mapping[str, Before]
) -> None:
    """One run over all samples; each layer is corrected before the next sees what it gives."""

    def handler(key: str, module: str, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        return match(key, layers[module], before[key], result) if key in before else result

    with surgery.watched(model, handler):
        surgery.call(model, inputs)


def kmeans(weights: Array, entries: int, iterations: int) -> tuple[Array, Array]:
    """``entries`` centroids (float64, rising) and the nearest one's number for each of ``weights`` (n,), as uint8.

    Lloyd's ``iterations``, fewer where nothing moves. Sorted, a cluster is a run of weights between two midpoints and
    its mean a difference of running sums, so that an iteration costs K searches.
    """
    order = np.sort(weights.astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(order)])
    centroids, before = np.linspace(order[0], order[-1], entries), None
    for _ in range(iterations):
        ends = np.concatenate([[0], np.searchsorted(order, _midpoints(centroids)), [len(order)]])
        if before is not None and np.array_equal(before, ends):
            break
        before, counts = ends, np.diff(ends)
        centroids = np.where(counts > 0, np.diff(sums[ends]) / counts.clip(1), centroids)
    return centroids, np.searchsorted(_midpoints(centroids), weights.astype(np.float64), "right").astype(np.uint8)


def _midpoints(centroids: Array) -> Array:
    middle: Array = (centroids[1:] + centroids[:-1]) / 2
    return middle
