"""HashedNets: the weights of a layer share fewer numbers, and a hash says which is whose, so no index is stored.

Chen, Wilson, Tyree, Weinberger and Chen 2015, arXiv 1504.04788, section 4: each weight is one of K shared numbers with
a sign, both by a hash of its place (:mod:`laconic.hashing`), and a number's gradient is the sum of those of its places
with their signs. The file holds the K numbers in float32; the runtime rebuilds the weight when it opens the file
(:mod:`laconic.runtime.onnx_hashed`).

Deviation: the numbers begin as the means of their weights, signed, where the paper draws them at random. Of a trained
layer little is left so: without ``epochs`` expect little of the network too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic import hashing, surgery
from laconic.core import Context, Facts, Task
from laconic.errors import RecipeError
from laconic.steps.cluster.codebook import look_up, open_layers
from laconic.steps.quantize.trained import check_data, check_training, train


@dataclass(frozen=True)
class HashedNets:
    """Let each layer's weights share ``ratio`` as many numbers, above 0 up to 1, or what ``layers`` says for layers by
    globs, and train for ``epochs`` with AdamW at ``lr``; ``distill`` is the share of the distillation loss.
    ``exclude``: globs of layers left as they are, as is one that keeps all its numbers.
    """

    ratio: float = 0.125
    layers: Mapping[str, float] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    epochs: float = 0.0
    lr: float = 1e-3
    batch: int = 64
    distill: float = 0.5

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_training(self)
        for name, ratio in {"ratio": self.ratio, **self.layers}.items():
            if not 0 < ratio <= 1:
                raise RecipeError(f"HashedNets of {name}", got=ratio, wanted="above 0 up to 1")

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        check_data(self, task)
        surgery.require_matches("layers of HashedNets", self.layers, list(surgery.weighted_layers(model)))
        made: list[list[Any]] = []
        for name, layer in open_layers(model, (*self.exclude, *context.keep), "HashedNets").items():
            entries = max(1, round(self._ratio(name) * layer.weight.numel()))
            if entries == layer.weight.numel():
                continue
            if parametrize.is_parametrized(layer, "weight"):
                fix = "leave one of the two steps out"
                raise RecipeError(f"HashedNets of {name}, whose weight has another form already", fix=fix)
            install(layer, entries)
            made.append([name, entries])
        return model, {"layers": made, "computed": "float32", **train(self, model, task, context)}

    def restore(self, model: Any, facts: Facts) -> Any:
        for name, entries in facts["layers"]:
            install(model.get_submodule(name), entries)
        return model

    def _ratio(self, name: str) -> float:
        stated = surgery.stated(name, self.layers)
        return self.ratio if stated is None else stated


class Hashed(nn.Module):
    """The parametrization: ``values`` (K, 1) and the hash make a weight of ``shape``. ``hashed``, K, is what a runtime
    needs to know of it."""

    places: Tensor

    def __init__(self, values: Tensor, shape: Sequence[int]) -> None:
        super().__init__()
        self.hashed, self.shape = len(values), torch.Size(shape)
        self.values = nn.Parameter(values.detach().clone())
        places = torch.from_numpy(hashing.places(self.shape.numel(), self.hashed))
        self.register_buffer("places", places, persistent=False)  # follow from K and the shape

    def forward(self) -> Tensor:
        return look_up(torch.cat([self.values, -self.values]), self.places).reshape(self.shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Nothing is kept of the weight."""
        return ()


@torch.no_grad()
def install(layer: surgery.Layer, entries: int) -> None:
    """Let the layer's weights share ``entries`` numbers: the means of the weights of each, with their signs."""
    weight = layer.weight.detach().flatten().double()
    places = torch.from_numpy(hashing.places(len(weight), entries))
    signed = torch.where(places < entries, weight, -weight)
    sums = signed.new_zeros(entries).index_add_(0, places % entries, signed)
    values = sums / torch.bincount(places % entries, minlength=entries).clamp_min(1)
    parametrize.register_parametrization(layer, "weight", Hashed(values[:, None].float(), layer.weight.shape))
