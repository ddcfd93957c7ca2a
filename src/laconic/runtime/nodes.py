"""The nodes of the graph that a runtime really runs, each with its time in the runtime's own profile."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Arithmetic = Literal["integer", "float", "convert"]


@dataclass(frozen=True)
class Node:
    """One node that ran.

    ``module``: the layer that it came from, or the runtime's own word where it came from none. ``operator``: the
    runtime's name of its kernel. ``arithmetic``: what it computes in; ``convert`` only quantizes or dequantizes.
    ``reads``: the names of the nodes whose values it takes. ``time_ms``: of a call that nothing disturbed.
    """

    name: str
    module: str
    operator: str
    arithmetic: Arithmetic
    reads: tuple[str, ...]
    time_ms: float


def times_by_module(nodes: Iterable[Node]) -> dict[str, float]:
    """Milliseconds in all nodes of each module."""
    found: dict[str, float] = {}
    for node in nodes:
        found[node.module] = found.get(node.module, 0.0) + node.time_ms
    return found


def undisturbed(times_ms: Sequence[float]) -> float:
    """The first decile of the times of some calls: other programs only ever add to them, and so do the first calls."""
    return float(np.quantile(times_ms, 0.1))
