"""Which values carry a quantizer: decided from the calls of one run and the target's integer kernels.

An operator runs in integers when each of its inputs and its output are quantized. So both sides of every operator with
an integer kernel are wanted, with these rules:

- a relu or clamp after it is fused: its output is quantized instead, and its bounds bound the range;
- what only moves numbers (max pooling, reshaping, concatenation, padding of channels) shares one quantizer between its
  inputs and its output;
- padding of space and dropout are looked through: the runtime folds them into the operator behind;
- the model's outputs stay float where the target can give float from an integer linear layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from laconic.core import Traits
from laconic.fake_quantize import Shared
from laconic.surgery import Call, Graph

_MOVES = frozenset({"max_pool", "reshape", "slice", "concat", "pad", "dropout"})
_BOUNDED = frozenset({"relu", "clamp"})


@dataclass(frozen=True)
class Placement:
    """``groups`` of values that share a quantizer, with the bounds that clamps put on them; ``layers``: the layers
    that run in integers; ``fused``: for each of their calls, the value behind its activation."""

    groups: tuple[tuple[Shared, tuple[float, float]], ...]
    layers: tuple[str, ...]
    fused: dict[str, str]


class _Groups:
    """Disjoint sets of names (union-find with path halving)."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        self.parent.setdefault(name, name)
        while self.parent[name] != name:
            self.parent[name] = self.parent[self.parent[name]]
            name = self.parent[name]
        return name

    def join(self, a: str, b: str) -> None:
        self.parent[self.find(b)] = self.find(a)


def place(graph: Graph, layers: Iterable[str], traits: Traits) -> Placement:
    """Place quantizers so that the calls of ``layers``, and the other operators between them, run in integers."""
    producer, consumers, chosen = graph.producer(), graph.consumers(), set(layers)
    wanted: dict[str, None] = {}  # ordered
    fused: dict[str, str] = {}
    for call in graph.calls:
        if not _runs_in_integers(call, chosen, traits):
            continue
        output = _behind_activation(call, graph, consumers)
        if call.family in ("conv", "linear"):
            fused[call.key] = output
        for name in call.inputs:
            wanted.setdefault(_through_padding(name, producer))
        if not (output in graph.outputs and traits.float_output and call.family == "linear"):
            wanted.setdefault(output)
    groups = _share(wanted, producer)
    return Placement(
        groups=tuple((_order(names, producer), _bounds(names, producer)) for names in groups),
        layers=tuple(dict.fromkeys(producer[key].module for key in fused)),
        fused=fused,
    )


def _runs_in_integers(call: Call, layers: set[str], traits: Traits) -> bool:
    if call.family not in traits.integer_operators:
        return False
    if call.family in ("conv", "linear"):
        return call.module in layers
    return True


def _behind_activation(call: Call, graph: Graph, consumers: dict[str, list[Call]]) -> str:
    """The value that the operator and the relu or clamp fused to it give."""
    (output, *_), users = call.outputs, consumers.get(call.outputs[0], [])
    if output not in graph.outputs and len(users) == 1 and users[0].family in _BOUNDED and users[0].bounds:
        return users[0].outputs[0]
    return output


def _through_padding(name: str, producer: dict[str, Call]) -> str:
    while (call := producer.get(name)) and (
        call.family == "dropout" or (call.family == "pad" and not call.channel_pad)
    ):
        name = call.inputs[0]
    return name


def _share(wanted: dict[str, None], producer: dict[str, Call]) -> list[list[str]]:
    """Close ``wanted`` under moves, upstream: a moved value shares its quantizer with what it was moved from."""
    groups = _Groups()
    todo = list(wanted)
    seen: dict[str, None] = {}
    while todo:
        name = todo.pop(0)
        if name in seen:
            continue
        seen[name] = None
        groups.find(name)
        call = producer.get(name)
        if call is not None and call.family in _MOVES:
            for source in call.inputs:
                groups.join(source, name)
                todo.append(source)
    members: dict[str, list[str]] = {}
    for name in seen:
        members.setdefault(groups.find(name), []).append(name)
    return list(members.values())


def _order(names: list[str], producer: dict[str, Call]) -> Shared:
    moved = tuple(n for n in names if n in producer and producer[n].family in _MOVES)
    return Shared(active=tuple(n for n in names if n not in moved), passive=moved)


def _bounds(names: list[str], producer: dict[str, Call]) -> tuple[float, float]:
    """The range that the sources of a group can take at all: what their relus and clamps let through."""
    sources = [producer.get(n) for n in names if n not in producer or producer[n].family not in _MOVES]
    bounds = [(c.bounds if c is not None and c.bounds else (-math.inf, math.inf)) for c in sources]
    return min(low for low, _ in bounds), max(high for _, high in bounds)
