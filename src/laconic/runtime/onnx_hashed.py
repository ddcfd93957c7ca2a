"""Weights that a hash spreads over a few shared numbers (:mod:`laconic.hashing`): the file holds the numbers alone, and
the hash is computed when a runtime opens it.

H of 0, 1, ... is written once in the graph, for as many as the largest such layer has weights; each layer takes what it
needs of it, and looks the places up in its numbers followed by their negatives. All of it is constant: ONNX Runtime and
OpenVINO compute it while they open the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from laconic import hashing
from laconic.core import Array

Node = Callable[..., ir.Value]
"""``node(kind, *inputs, **attributes)`` puts a node in its place and gives its output."""
Numbers = Callable[..., ir.Value]
"""``numbers(*ints)`` gives a stored int64 constant (n,)."""


@dataclass(frozen=True)
class Hashed:
    """A weight of ``count`` numbers that are the ``table`` (K,) of shared ones, with signs."""

    table: Array
    count: int

    @property
    def size_bytes(self) -> int:
        return int(self.table.nbytes)


def shared(weight: Array, entries: int) -> Hashed | None:
    """The numbers that a float32 weight shares, if it is what the hash makes of ``entries`` numbers, to the bit."""
    places = hashing.places(weight.size, entries)
    table = np.zeros(entries, np.float32)
    table[places % entries] = np.where(places < entries, weight.ravel(), -weight.ravel())
    again = np.concatenate([table, -table])[places]
    return Hashed(table, weight.size) if again.tobytes() == weight.astype(np.float32).tobytes() else None


def hashes(node: Node, numbers: Numbers, count: int) -> ir.Value:
    """The nodes that give H(0), ..., H(count - 1): (count,) int64."""
    prime = numbers(hashing.P)
    n = node("Range", *(node("Squeeze", numbers(end)) for end in (0, count, 1)))
    left, right = node("Div", n, prime), node("Mod", n, prime)
    for key in hashing.KEYS:
        x = node("Mod", node("Add", right, numbers(key)), prime)
        cube = node("Mul", node("Mod", node("Mul", x, x), prime), x)
        left, right = right, node("Mod", node("Add", cube, left), prime)
    return node("Add", node("Mul", left, prime), right)


def looked_up(node: Node, numbers: Numbers, hashed: Hashed, every: ir.Value, table: ir.Value) -> ir.Value:
    """The nodes that give the weight (count,) from ``every`` hash and its ``table``."""
    own = node("Slice", every, numbers(0), numbers(hashed.count))
    place = node("Mod", own, numbers(2 * len(hashed.table)))
    both = node("Concat", table, node("Neg", table), axis=0)
    return node("Gather", both, place, axis=0)
