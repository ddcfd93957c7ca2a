"""Which values carry a quantizer: decided from the calls of one run and the target's integer kernels.

An operator runs in integers when each of its inputs and its output are quantized. So both sides of every operator with
an integer kernel are wanted, with these rules:

- a relu or clamp after it is fused: its output is quantized instead, and its bounds bound the range;
- what only moves numbers (max pooling, reshaping, concatenation, padding of channels) shares one quantizer between its
  inputs and its output, if what it moves comes out of an integer operator; else its output alone is quantized (a max
  pooling of integers that nothing gave as integers ran four times slower than of floats);
- an addition or a mean runs in integers only if one of its inputs comes out of an integer operator and, where a linear
  layer can give float, what it gives is read as integers: the additions of a transformer go to its layer norms;
- padding of space and dropout are looked through: the runtime folds them into the operator behind;
- what a linear layer gives stays float where the target can give float from one and nothing reads integers; a last
  1x1 convolution of a single place is a linear layer too;
- where every operator can give float (TensorRT), only inputs are quantized, and of an addition only the branch that
  is not fused to it: what a layer gives to nobody else is added before it is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from laconic.core import Traits
from laconic.fake_quantize import Shared
from laconic.surgery import Call, Graph

_MOVES = frozenset({"max_pool", "reshape", "slice", "concat", "pad", "dropout"})
_BOUNDED = frozenset({"relu", "clamp"})


@dataclass(frozen=True)
class Placement:
    """``groups`` of values that share a quantizer, with the bounds that clamps put on them; ``layers``: the layers
    that run in integers, and the value that each reads; ``fused``: for each of their calls, the value behind its
    activation; ``floats``: the calls that read quantized values and are left in float."""

    groups: tuple[tuple[Shared, tuple[float, float]], ...]
    layers: dict[str, str]
    fused: dict[str, str]
    floats: tuple[str, ...] = ()


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
    read = _read_as_integers(graph, chosen, producer, traits)
    wanted: dict[str, None] = {}  # ordered
    integers: set[str] = set()  # the values that integer operators give, and what is only moved from there
    fused: dict[str, str] = {}
    running: dict[str, str] = {}
    reads: dict[str, str] = {}
    for call in graph.calls:
        comes_as_integers = any(through_padding(name, producer) in integers for name in call.inputs)
        if call.family in _MOVES and comes_as_integers:
            integers.update(call.outputs)
        if call.family not in traits.integer_operators:
            continue
        weighted = call.family in ("conv", "linear")
        if not (call.module in chosen if weighted else comes_as_integers and read.issuperset(call.outputs)):
            continue
        output = _behind_activation(call, graph, consumers)
        running[call.key] = output
        if weighted:
            fused[call.key] = output
            reads.setdefault(call.module, through_padding(call.inputs[0], producer))
        fused_to = _fused_input(call, producer, consumers) if traits.inputs_only else None
        for name in call.inputs:
            if name != fused_to:
                wanted.setdefault(through_padding(name, producer))
        last = call.one_place and _is_output(output, graph, consumers)
        gives_float = traits.float_output and (last or (call.family == "linear" and output not in read))
        if not gives_float:
            integers.add(output)
        if not (traits.inputs_only or gives_float):
            wanted.setdefault(output)
    groups = _share(wanted, producer, integers)
    return Placement(
        groups=tuple((shared, _bounds(shared.active, producer)) for shared in groups),
        layers=reads,
        fused=fused,
        floats=_floats(graph, groups, running),
    )


def _read_as_integers(graph: Graph, chosen: set[str], producer: dict[str, Call], traits: Traits) -> set[str]:
    """The values that something reads as integers; all of them where linear layers cannot give float."""
    if not traits.float_output or traits.inputs_only:
        return {name for call in graph.calls for name in call.outputs}
    read: set[str] = set()
    for call in reversed(graph.calls):
        if call.family in ("conv", "linear"):
            takes = call.module in chosen
        else:
            passes = call.family in traits.integer_operators | _MOVES | _BOUNDED
            takes = passes and not read.isdisjoint(call.outputs)
        if takes:
            read.update(call.inputs, (through_padding(name, producer) for name in call.inputs))
    return read


def _floats(graph: Graph, groups: Iterable[Shared], running: dict[str, str]) -> tuple[str, ...]:
    """The calls that read what is quantized and are computed in float all the same, and all recurrent ones; ``running``
    are those that run in integers, with the value that each gives."""
    quantized = {name for shared in groups for name in (*shared.active, *shared.passive)}
    ends = set(running.values())
    return tuple(
        call.key
        for call in graph.calls
        if call.family == "recurrent"
        or (
            call.key not in running
            and call.family not in _MOVES
            and not quantized.isdisjoint(call.inputs)
            and ends.isdisjoint(call.outputs)
        )
    )


def _fused_input(call: Call, producer: dict[str, Call], consumers: dict[str, list[Call]]) -> str | None:
    """The input of an addition that comes straight from a layer and goes nowhere else."""
    if call.family != "add" or len(set(call.inputs)) < 2:
        return None
    layers = [n for n in call.inputs if n in producer and producer[n].family in ("conv", "linear")]
    return next((name for name in layers if len(consumers[name]) == 1), None)


def _behind_activation(call: Call, graph: Graph, consumers: dict[str, list[Call]]) -> str:
    """The value that the operator and the relu or clamp fused to it give."""
    (output, *_), users = call.outputs, consumers.get(call.outputs[0], [])
    if output not in graph.outputs and len(users) == 1 and users[0].family in _BOUNDED and users[0].bounds:
        return users[0].outputs[0]
    return output


def _is_output(name: str, graph: Graph, consumers: dict[str, list[Call]]) -> bool:
    """Whether a value is an output of the model, or reshaped to one and to nothing else."""
    users = consumers.get(name, [])
    if name in graph.outputs:
        return not users
    return bool(users) and all(
        call.family == "reshape" and _is_output(call.outputs[0], graph, consumers) for call in users
    )


def through_padding(name: str, producer: dict[str, Call]) -> str:
    """What ``name`` was before spatial padding and dropout."""
    while (call := producer.get(name)) and (
        call.family == "dropout" or (call.family == "pad" and not call.channel_pad)
    ):
        name = call.inputs[0]
    return name


def _share(wanted: dict[str, None], producer: dict[str, Call], integers: set[str]) -> list[Shared]:
    """Close ``wanted`` under moves, upstream: a moved integer shares its quantizer with what it was moved from."""
    groups = _Groups()
    moved: set[str] = set()
    todo = list(wanted)
    seen: dict[str, None] = {}
    while todo:
        name = todo.pop(0)
        if name in seen:
            continue
        seen[name] = None
        groups.find(name)
        call = producer.get(name)
        if call is not None and call.family in _MOVES and name in integers:
            moved.add(name)
            for source in call.inputs:
                groups.join(source, name)
                todo.append(source)
    members: dict[str, list[str]] = {}
    for name in seen:
        members.setdefault(groups.find(name), []).append(name)
    return [
        Shared(active=tuple(n for n in names if n not in moved), passive=tuple(n for n in names if n in moved))
        for names in members.values()
    ]


def _bounds(names: Sequence[str], producer: dict[str, Call]) -> tuple[float, float]:
    """The range that values can take at all: what their relus and clamps let through, also where it was moved since."""
    bounds = []
    for name in names:
        call = producer.get(name)
        while call is not None and call.family in _MOVES and len(call.inputs) == 1:
            call = producer.get(call.inputs[0])
        bounds.append(call.bounds if call is not None and call.bounds else (-math.inf, math.inf))
    return min(low for low, _ in bounds), max(high for _, high in bounds)
