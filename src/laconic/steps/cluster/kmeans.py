"""Trained quantization of Deep Compression: the weights of a layer share a few values, found by k-means.

Han, Mao and Dally 2016, arXiv 1510.00149, section 3. Per layer, n weights are put into K = 2^bits clusters that
minimise sum_i sum_{w in c_i} |w - c_i|^2 (eq. 2) by Lloyd's iterations from centroids spread evenly between the least
and the largest weight. That *linear* initialisation keeps centroids among the few large weights, which matter most
(section 3.2). In one dimension the least sum could be found exactly by dynamic programming; it would give those
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
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from laconic import surgery
from laconic.core import Array, Context, Facts, Task
from laconic.errors import RecipeError
from laconic.steps.cluster.codebook import install, install_empty, moving, open_layers
from laconic.steps.cluster.matching import Before, match, remember, to_be_biased
from laconic.steps.quantize.observe import calibration_inputs
from laconic.steps.quantize.trained import check_data, check_training, computed_in_float, train

_MOST_ITERATIONS = 10_000


@dataclass(frozen=True)
class Cluster:
    """Let each layer's weights share 2^``bits`` values, and train these for ``epochs`` with AdamW at ``lr``;
    ``distill`` is the share of the distillation loss. ``codes``: which value a weight has stays as it was found, or is
    trained too. ``exclude``: globs of layers left as they are.

    The file stores ``bits`` per weight and a codebook; the runtime computes in float32.
    """

    bits: int = 4
    codes: Literal["fixed", "trained"] = "fixed"
    exclude: tuple[str, ...] = ()
    epochs: float = 0.0
    lr: float = 1e-3
    batch: int = 64
    distill: float = 0.5

    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_training(self)
        if not 1 <= self.bits <= 8:
            raise RecipeError("bits of Cluster", got=self.bits, wanted="1 to 8")

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        check_data(self, task)
        entries, inputs = 2**self.bits, calibration_inputs(task)
        layers = {
            name: layer
            for name, layer in open_layers(model.eval(), (*self.exclude, *context.keep), "Cluster").items()
            if layer.weight.numel() * (32 - self.bits) > 32 * entries
        }
        context.progress("observing layers", 0.0)
        before = remember(model, inputs, layers)
        weights = {name: layer.weight.detach() for name, layer in layers.items()}
        for layer in layers.values():
            centroids, index = kmeans(layer.weight.detach().flatten().numpy(), entries)
            install(layer, torch.from_numpy(index), torch.from_numpy(centroids)[:, None].to(layer.weight.dtype))
        facts = {
            "layers": [[name, entries] for name in layers],
            "biased": to_be_biased(before, layers),
            **computed_in_float(self.bits),
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


def kmeans(weights: Array, entries: int) -> tuple[Array, Array]:
    """``entries`` centroids (float64, rising) and the nearest one's number for each of ``weights`` (n,), as uint8.

    Lloyd's iterations until nothing moves. Sorted, a cluster is a run of weights between two midpoints and its mean a
    difference of running sums, so that an iteration costs K searches.
    """
    order = np.sort(weights.astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(order)])
    centroids, before = np.linspace(order[0], order[-1], entries), None
    for _ in range(_MOST_ITERATIONS):
        ends = np.concatenate([[0], np.searchsorted(order, _midpoints(centroids)), [len(order)]])
        if before is not None and np.array_equal(before, ends):
            break
        before, counts = ends, np.diff(ends)
        centroids = np.where(counts > 0, np.diff(sums[ends]) / counts.clip(1), centroids)
    return centroids, np.searchsorted(_midpoints(centroids), weights.astype(np.float64), "right").astype(np.uint8)


def _midpoints(centroids: Array) -> Array:
    middle: Array = (centroids[1:] + centroids[:-1]) / 2
    return middle
