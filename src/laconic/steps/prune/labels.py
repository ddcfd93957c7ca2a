"""Which parameters belong to which channel: labels that travel through a network while it runs.

Beside every value runs a tensor of the same shape that holds, for each number, the label of the channel that it belongs
to, 0 for none. A layer's outputs begin with labels of their own; what only moves numbers (a reshape, a shuffle, a
concatenation) is run on the labels as it is; where values meet element by element their labels are tied together, and
so are those of the parameters that they meet. What ends up tied is one channel, through whatever code it went, and
each axis of each parameter says which of its places belong to it. (The coupled groups of DepGraph, Fang et al. 2023,
arXiv 2301.12900, at the level of single channels: no rule says which dimension of a reshape the channels are.)

What mixes channels ties them all: the mean over channels, say. What multiplies activations with each other (attention)
fixes them. An operator that is neither known here nor elementwise fixes what goes in. So labels are a proposal that
errs to the safe side where operators are known; :mod:`.groups` tries it out before it is believed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from laconic import surgery
from laconic.steps.prune import label_rules as rules

OUTPUT = "its channels are the model's outputs"
_MOST_ELEMENTS = 2**22


@dataclass
class Axis:
    """One axis of a parameter or buffer: it ``gives`` channels, ``reads`` them, or they ``pass`` along it; the channel
    of each place."""

    role: str
    channels: np.ndarray[Any, Any]


@dataclass
class Labelled:
    """``axes`` by the parameter's path and axis. ``whole``: channels (and why) that cannot be removed."""

    axes: dict[tuple[str, int], Axis]
    whole: dict[int, str]


@torch.no_grad()
def labelled(model: nn.Module, example: Mapping[str, Tensor]) -> Labelled:
    """Run ``model`` on the example and follow its channels."""
    trail = Trail(model)
    with surgery.watched(model, trail.handle):
        outputs = surgery.call(model, example)
    for y in outputs.values():
        trail.fix(trail.of(y), OUTPUT)
    return trail.resolved()


@dataclass
class _Leaf:
    path: str
    axes: dict[int, tuple[str, Tensor]] = field(default_factory=dict)
    elements: Tensor | None = None


class Trail:
    """The labels of one run."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        state = [*model.named_parameters(), *model.named_buffers()]
        self.leaves = {id(tensor): _Leaf(path) for path, tensor in state}
        self.layers = {id(m.weight) for m in self.modules.values() if isinstance(m, rules.WEIGHTED)}
        self.known: MutableMapping[Tensor, Tensor] = WeakIdKeyDictionary()
        self.next = rules.FIRST
        self.edges: list[Tensor] = []
        self.reasons: dict[str, list[Tensor]] = {}

    # ---------------------------------------------------------------------------------------------------------- labels

    def fresh(self, *shape: int) -> Tensor:
        count = math.prod(shape)
        made = torch.arange(self.next, self.next + count, dtype=torch.float64).reshape(shape)
        self.next += count
        return made

    def of(self, value: Tensor) -> Tensor:
        """The labels of a value, or of the elements of a parameter."""
        if value in self.known:
            return self.known[value]
        leaf = self.leaves.get(id(value))
        if leaf is None or id(value) in self.layers or value.numel() > _MOST_ELEMENTS or not value.is_floating_point():
            return torch.zeros(value.shape, dtype=torch.float64)
        if value.dim() == 1:
            return self.axis(value, 0, "passes")
        if leaf.elements is None:
            leaf.elements = self.fresh(*value.shape)
        return leaf.elements

    def axis(self, parameter: Tensor, dim: int, role: str) -> Tensor:
        """The labels of the places along an axis of a parameter; of a product or norm that computed it, none."""
        leaf = self.leaves.get(id(parameter))
        if leaf is None:
            return self.fresh(parameter.shape[dim])
        dim %= parameter.dim()
        if dim not in leaf.axes:
            leaf.axes[dim] = role, self.fresh(parameter.shape[dim])
        elif leaf.axes[dim][0] == "passes":
            leaf.axes[dim] = role, leaf.axes[dim][1]
        return leaf.axes[dim][1]

    def is_leaf(self, value: Any) -> bool:
        return id(value) in self.leaves

    def note(self, value: Tensor, labels: Tensor) -> None:
        """The labels live as long as ``value`` does: those of all values at once can outweigh the network."""
        self.known[value] = labels

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Elements of ``a`` and ``b``, broadcast to each other, are of one channel where both have a label."""
        a, b = torch.broadcast_tensors(a, b)  # type: ignore[no-untyped-call]
        both = (a != b) & (a > 0) & (b > 0)
        if bool(both.any()):
            pairs = a[both].long() * 2**31 + b[both].long()
            self.edges.append(torch.unique(pairs))

    def fix(self, labels: Tensor, reason: str) -> None:
        """The channels of these labels cannot be removed."""
        self.reasons.setdefault(reason, []).append(torch.unique(labels[labels > 0]))

    def along(self, labels: Tensor, dim: int) -> Tensor:
        """One label per place along ``dim``; what else stands there is tied to it."""
        places = labels.movedim(dim, 0).reshape(labels.shape[dim], -1)
        first = places.amax(1)
        self.tie(places, first[:, None])
        return first

    # --------------------------------------------------------------------------------------------------------- calls

    def handle(self, key: str, module: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        made = [y for y in tree_leaves(result) if isinstance(y, Tensor) and y.is_floating_point()]
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.is_floating_point()]
        name = getattr(func, "__name__", str(func)).strip("_")
        if name == "setitem" and given:
            self.note(args[0], self.of(args[0]).clone())
            func(*self.swapped(args))
        elif made and given:
            call = rules.Called(func, name, self.modules.get(module), args, kwargs, result)
            for y, found in zip(made, rules.RULES.get(name, rules.unknown)(self, call), strict=True):
                self.note(y, found)
        return result

    def swapped(self, values: Any) -> Any:
        """``values`` with labels in the places of floats."""
        return tree_map(lambda x: self.of(x) if isinstance(x, Tensor) and x.is_floating_point() else x, values)

    # ---------------------------------------------------------------------------------------------------------- result

    def resolved(self) -> Labelled:
        pairs = torch.cat(self.edges) if self.edges else torch.zeros(0, dtype=torch.int64)
        rows, columns = (pairs // 2**31).numpy(), (pairs % 2**31).numpy()
        matrix = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(self.next, self.next))
        channel = connected_components(matrix, directed=False)[1]

        def channels(labels: Tensor) -> np.ndarray[Any, Any]:
            return np.asarray(channel[labels.long().numpy()])

        axes: dict[tuple[str, int], Axis] = {}
        mixed: dict[str, list[Tensor]] = {}
        for leaf in self.leaves.values():
            for dim, (role, labels) in leaf.axes.items():
                axes[leaf.path, dim] = Axis(role, channels(labels))
            if leaf.elements is not None:
                axis = _one_axis(channels(leaf.elements), np.bincount(channel))
                if axis is None:
                    mixed[f"{leaf.path} holds them mixed"] = [leaf.elements.flatten()]
                else:
                    axes[leaf.path, axis[0]] = Axis("passes", axis[1])
        named = np.zeros(len(channel), bool)  # the others are single numbers of parameters: far more than channels
        for found in axes.values():
            named[found.channels] = True
        whole: dict[int, str] = {}
        for reason, parts in (mixed | self.reasons).items():
            fixed = channels(torch.cat(parts))
            for label in np.unique(fixed[named[fixed]]).tolist():
                whole.setdefault(label, reason)
        return Labelled(axes, whole)


def _one_axis(found: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any]) -> tuple[int, np.ndarray[Any, Any]] | None:
    """The axis along which a parameter's elements, each with its channel, have one channel per place; elements that are
    of no other's channel fit in anywhere."""
    loose = sizes[found] == 1
    for dim in sorted(range(found.ndim), key=lambda d: -d):
        high, low = (
            np.moveaxis(np.where(loose, stand_in, found), dim, 0).reshape(found.shape[dim], -1)
            for stand_in in (-1, len(sizes))
        )
        most, least = high.max(1), low.min(1)
        if ((most == least) | (most < 0)).all():
            return dim, most
    return None
