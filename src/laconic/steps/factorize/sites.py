"""The layers that a factorization may replace, what they cost where they run, and how much of it is to go.

All techniques of this folder have the same settings: ``ratio``, the share of a layer's MACs that goes; ``layers``,
which says for a layer by name or glob another ratio or, from 1 on, a rank; ``exclude``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic import surgery
from laconic.errors import RecipeError, TrialError
from laconic.fake_quantize import attached


@dataclass(frozen=True)
class Site:
    """A layer and the sizes of the maps that it reads and gives, without channels; (tokens,) for a linear layer."""

    name: str
    layer: surgery.Layer
    given: tuple[int, ...]
    made: tuple[int, ...]

    @property
    def groups(self) -> int:
        return 1 if isinstance(self.layer, nn.Linear) else self.layer.groups

    @property
    def outputs(self) -> int:
        """Output channels of a group."""
        return len(self.layer.weight) // self.groups

    @property
    def inputs(self) -> int:
        """Input channels of a group."""
        return self.layer.weight.shape[1]

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(self.layer.weight.shape[2:])

    @property
    def macs(self) -> int:
        return self.layer.weight.numel() * math.prod(self.made)

    def weight(self) -> Tensor:
        """(groups, outputs, inputs, ...), float64."""
        w = self.layer.weight.detach().double()
        return w.reshape(self.groups, self.outputs, *w.shape[1:])


def largest_rank(site: Site, wish: float, macs: Callable[[int], int], multiple: int) -> int:
    """The rank that ``wish`` asks for: itself from 1 on, else the largest whose ``macs`` are at most the share 1 - wish
    of the layer's, and one at least."""
    if wish >= 1:
        return int(wish)
    budget = (1 - wish) * site.macs
    rank = 1
    while macs(rank + 1) <= budget:
        rank += 1
    return liked(rank, multiple)


def liked(rank: int, multiple: int) -> int:
    """The largest rank, ``rank`` at most, that the target's kernels like: from twice as many on, a ``multiple``."""
    return rank if rank < 2 * multiple else rank // multiple * multiple


def too_dear(site: Site, macs: int) -> str | None:
    """The reason to leave a layer whole whose factors would cost as much."""
    return f"its factors cost {macs:,} MACs, the layer {site.macs:,}" if macs >= site.macs else None


# ------------------------------------------------------------------------------------------------------------ settings


def check_settings(step: Any) -> None:
    """Refuse ratios and ranks that are none."""
    name = type(step).__name__
    if not 0 <= step.ratio < 1:
        raise RecipeError(f"ratio of {name}", got=step.ratio, wanted="0 up to, not including, 1: the share that goes")
    for layer, wish in step.layers.items():
        if wish < 0 or (wish >= 1 and wish != int(wish)):
            wanted = "a ratio from 0 up to, not including, 1, or a rank, a whole number"
            raise RecipeError(f"{name} of {layer}", got=wish, wanted=wanted)


def wishes(step: Any, found: Mapping[str, surgery.Layer], keep: Sequence[str], ratio: float) -> dict[str, float]:
    """What is asked of each of the layers ``found``, zeros left out. A layer's own name goes before a glob.

    Raises :class:`RecipeError` where a name or glob of ``layers`` matches none of them, or two globs one layer.
    """
    kind = type(step).__name__
    for glob in step.layers:
        if not any(surgery.matches(name, [glob]) for name in found):
            near = get_close_matches(glob, found, cutoff=0.3) or list(found)[:5]
            raise RecipeError(f"{kind} of a layer that it cannot factorize", got=glob, wanted=", ".join(near) or "none")
    wished = {}
    for name in found:
        globs = [name] if name in step.layers else [g for g in step.layers if surgery.matches(name, [g])]
        if len(globs) > 1:
            raise RecipeError(f"{kind} of {name} is set twice", got=" and ".join(globs), fix="name the layer itself")
        wish = step.layers[globs[0]] if globs else ratio
        if wish and not surgery.matches(name, (*step.exclude, *keep)):
            wished[name] = float(wish)
    return wished


def open_layers(
    model: nn.Module, kind: str, suits: Callable[[surgery.Layer], bool]
) -> tuple[dict[str, surgery.Layer], dict[str, str]]:
    """The layers that ``suits`` takes and that can be replaced; and those that cannot, with the reason.

    Raises :class:`RecipeError` where weights or activations have another form already, :class:`TrialError` where a
    weight is not finite.
    """
    if attached(model) is not None:
        raise RecipeError(f"{kind} after Quantize", fix=f"put {kind} before it")
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    found, left_whole = {}, {}
    for name, layer in surgery.weighted_layers(model).items():
        if not suits(layer):
            continue
        if _has_another_form(layer):
            raise RecipeError(f"{kind} behind a step that gave {name} another form", fix=f"put {kind} before it")
        if not bool(torch.isfinite(layer.weight).all()):
            raise TrialError(f"a weight of {name} is not finite")
        found[name] = layer
        if hasattr(model, "to_onnx"):
            left_whole[name] = "layers of an ONNX file cannot be replaced yet"
        elif parametrize.is_parametrized(layer):
            left_whole[name] = "its weight is computed by a parametrization of the model's own"
        elif owners[id(layer.weight)] > 1:
            left_whole[name] = "its weight is another layer's too"
    return found, left_whole


def _has_another_form(layer: nn.Module) -> bool:
    """Whether a step of laconic's made the weight integers or codes."""
    if not parametrize.is_parametrized(layer, "weight"):
        return False
    chain = layer.parametrizations["weight"]  # type: ignore[index]
    return any(type(link).__module__.startswith("laconic.") for link in chain)


# ------------------------------------------------------------------------------------------------------------- modules


def like(
    layer: surgery.Layer,
    channels: tuple[int, int],
    axes: Sequence[int] | None = None,
    groups: int | None = None,
    last: bool = False,
) -> nn.Module:
    """A layer of the same kind from ``channels[0]`` to ``channels[1]`` which has the kernel of ``layer``, its stride,
    padding and dilation along the spatial ``axes`` (None: all) and is a point along the others. The ``last`` has the
    bias."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(*channels, bias=last, dtype=layer.weight.dtype)
    dims = range(len(layer.kernel_size))
    mine = dims if axes is None else axes

    def along(values: Sequence[int], elsewhere: int) -> Any:
        return tuple(values[d] if d in mine else elsewhere for d in dims)

    padding = layer.padding if isinstance(layer.padding, str) else along(layer.padding, 0)
    return type(layer)(
        *channels,
        along(layer.kernel_size, 1),
        along(layer.stride, 1),
        padding,
        along(layer.dilation, 1),
        layer.groups if groups is None else groups,
        bias=last,
        padding_mode=layer.padding_mode,
        dtype=layer.weight.dtype,
    )
