"""Taking places of parameters and buffers away, setting the sizes that their modules state, and taking it back; what
fails is found by trying."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from laconic.steps.prune.labels import Axis

Axes = Mapping[tuple[str, int], Axis]


Undo = list[Callable[[], None]]


@torch.no_grad()
def resized(model: nn.Module, before: Axes, after: Axes) -> Undo:
    """Keep of each axis the places whose channels are in ``after``, in place; returns what undoes it, step by step."""
    stays: dict[str, dict[int, Tensor]] = {}
    for (path, dim), axis in before.items():
        if len(after[path, dim].channels) < len(axis.channels):
            places = np.isin(axis.channels, after[path, dim].channels).nonzero()[0]
            stays.setdefault(path, {})[dim] = torch.as_tensor(places)
    known = dict((*model.named_parameters(), *model.named_buffers()))
    made = {id(known[path]): _kept(known[path], dims) for path, dims in stays.items()}
    undo: Undo = []
    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        changed = [(table, key, t) for table in tables for key, t in table.items() if id(t) in made]
        for table, key, tensor in changed:
            undo.append(partial(table.__setitem__, key, tensor))
            table[key] = made[id(tensor)]
        if changed:
            for name, size in _sizes(module, {key: t for _, key, t in changed}).items():
                undo.append(partial(setattr, module, name, getattr(module, name)))
                setattr(module, name, size)
    return undo


@contextmanager
def undone(undo: Undo) -> Iterator[None]:
    """Undo, at the end, what was done."""
    try:
        yield
    finally:
        for put_back in reversed(undo):
            put_back()


def failing(names: Sequence[str], works: Callable[[Sequence[str]], bool]) -> list[str]:
    """The names without which ``works`` is true: all at once first, since all work as a rule, then those alike (the
    same layer of blocks whose paths differ in numbers), then by halves. Where the first and the last of those alike
    both fail, all of them are taken to; where some work apart and not together, the later ones are."""
    if not names or works(names):
        return []
    alike: dict[tuple[str, str], list[str]] = {}
    for name in names:
        block, _, layer = name.rpartition(".")
        alike.setdefault((re.sub(r"\d+", "#", block), layer), []).append(name)
    found = [bad for some in alike.values() for bad in _failing(some, works)]
    left = [name for name in names if name not in found]
    together = _together([], left, works)
    return [name for name in names if name not in together]


def _together(already: list[str], names: list[str], works: Callable[[Sequence[str]], bool]) -> list[str]:
    """Those ``already`` known to work together, and the ``names`` that work with them and with each other."""
    if not names or works([*already, *names]):
        return [*already, *names]
    if len(names) == 1:
        return already
    middle = len(names) // 2
    return _together(_together(already, names[:middle], works), names[middle:], works)


def _failing(names: Sequence[str], works: Callable[[Sequence[str]], bool], apart: bool = False) -> list[str]:
    if works(names):
        return []
    if len(names) == 1 or not (apart or works(names[:1]) or works(names[-1:])):
        return list(names)
    middle = len(names) // 2
    return [*_failing(names[:middle], works, True), *_failing(names[middle:], works, True)]


def _kept(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    found = tensor.detach()
    for dim, places in dims.items():
        found = found.index_select(dim, places)
    return nn.Parameter(found, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else found


def _sizes(module: Any, old: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the module says of its sizes, as its weight is now; ``old``: what was in its tables."""
    weight = module._parameters.get("weight")
    if isinstance(module, nn.modules.conv._ConvNd) and weight is not None:
        first, second = weight.shape[:2]
        groups: int = module.groups
        if module.transposed:
            return {"in_channels": first, "out_channels": second * groups}
        if groups > 1 and "weight" in old and old["weight"].shape[1] == 1:  # depthwise: a group went with its channels
            groups = groups * first // len(old["weight"])
        return {"in_channels": second * groups, "out_channels": first, "groups": groups}
    if isinstance(module, nn.Linear) and weight is not None:
        return {"in_features": weight.shape[1], "out_features": weight.shape[0]}
    if isinstance(module, nn.Embedding) and weight is not None:
        return {"embedding_dim": weight.shape[1]}
    names = ("num_features", "num_channels", "num_parameters")
    vector = next((t for t in (weight, module._buffers.get("running_mean")) if t is not None and t.dim() == 1), None)
    if vector is None:
        return {}
    found: dict[str, Any] = {name: len(vector) for name in names if type(getattr(module, name, None)) is int}
    if len(getattr(module, "normalized_shape", ())) == 1:
        found["normalized_shape"] = (len(vector),)
    return found
