"""Blocks of a network, found in the calls of one run, and run again by themselves.

A run is cut where a single value holds everything that comes after: in front of and behind a residual branch, between
the layers of a chain. What lies between two cuts is a block if it has several layers (a branch and its addition);
chains are put together to blocks of two layers or more, the last of which mixes the channels (is not grouped).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from laconic import surgery

_RUN = 2
Values = dict[str, Tensor]


@dataclass(frozen=True)
class _Value:
    """In an argument's place: the value, or the parameter, called ``name``."""

    name: str


@dataclass(frozen=True)
class Operation:
    """One call: ``layer`` is the chosen layer that it applies, if any; ``reads`` and ``gives`` are names of values."""

    key: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    layer: str | None
    reads: frozenset[str]
    gives: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """Operations in a row; what they need from before is ``reads``, what is needed behind them is ``gives``."""

    operations: tuple[Operation, ...]
    reads: tuple[str, ...]
    gives: tuple[str, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_layers(self.operations)))

    def run(
        self, values: Values, parameters: Mapping[str, Tensor], quantize: Callable[[str, Tensor], Tensor]
    ) -> Values:
        """Run on ``values`` with ``parameters`` (``LAYER.weight``, ``LAYER.bias``); ``quantize(name, value)`` gives
        what goes on in a value's place. As many samples as were recorded."""
        values = dict(values)
        for op in self.operations:
            known = {**values, **{n: parameters[n] for n in (f"{op.layer}.weight", f"{op.layer}.bias") if op.layer}}
            result = op.function(*_filled(op.args, known), **_filled(op.kwargs, known))
            for name, value in surgery.named_results(op.key, result):
                if name in op.gives:
                    values[name] = quantize(name, value)
        return {name: values[name] for name in self.gives}


@torch.no_grad()
def record(twin: nn.Module, inputs: Values, layers: Mapping[str, surgery.Layer]) -> list[Operation]:
    """The calls of the float network ``twin`` on ``inputs``, which can be run again on as many samples."""
    graph = surgery.trace(twin, inputs)
    calls = {call.key: call for call in graph.calls}
    names: dict[int, str] = {}
    alive: list[Tensor] = []  # a tensor's id is its own only while it lives
    own: dict[str, dict[int, str]] = {}
    for name, layer in layers.items():
        parts = {"weight": layer.weight, "bias": layer.bias}
        own[name] = {id(tensor): f"{name}.{part}" for part, tensor in parts.items()}
    operations: list[Operation] = []

    def handler(key: str, module: str, func: Any, args: Any, kwargs: Any) -> Any:
        call = calls.get(key)
        if call is None:
            return func(*args, **kwargs)
        layer = module if module in own and call.family in ("conv", "linear") else None
        known = {**names, **(own[layer] if layer else {})}
        kept = _marked(args, known), _marked(kwargs, known)
        result = func(*args, **kwargs)
        for name, value in surgery.named_results(key, result):
            if name in call.outputs:
                names[id(value)] = name
                alive.append(value)
        operations.append(Operation(key, func, *kept, layer, frozenset(call.inputs), call.outputs))
        return result

    for name, tensor in inputs.items():
        names[id(tensor)] = f"input/{name}"
    with surgery.watched(twin, handler):
        surgery.call(twin, inputs)
    return operations


def blocks_of(
    operations: Sequence[Operation], inputs: Sequence[str], outputs: Sequence[str], grouped: frozenset[str]
) -> list[Block]:
    """The operations in blocks; ``inputs`` and ``outputs`` are the network's, ``grouped`` the layers that do not mix
    all channels."""
    parts: list[list[Operation]] = [[]]
    for segment in _segments(operations, inputs):
        before, here = _layers(parts[-1]), _layers(segment)
        complete = len(here) > 1 or (len(before) >= _RUN and before[-1] not in grouped)
        if before and here and complete:
            parts.append([])
        parts[-1] += segment
    return [_block(part, operations, outputs) for part in parts]


def _layers(part: Sequence[Operation]) -> list[str]:
    return [op.layer for op in part if op.layer]


def _segments(operations: Sequence[Operation], inputs: Sequence[str]) -> Iterator[list[Operation]]:
    """The operations between one cut and the next."""
    last = {name: i for i, op in enumerate(operations) for name in op.reads}
    live = {name for name in inputs if name in last}
    segment: list[Operation] = []
    for i, op in enumerate(operations):
        segment.append(op)
        live = {name for name in (*live, *op.gives) if last.get(name, -1) > i}
        if len(live) == 1 or i == len(operations) - 1:
            yield segment
            segment = []


def _block(part: Sequence[Operation], operations: Sequence[Operation], outputs: Sequence[str]) -> Block:
    made = {name for op in part for name in op.gives}
    reads = {name: None for op in part for name in sorted(op.reads) if name not in made}
    last = operations.index(part[-1])
    behind = {name for op in operations[last + 1 :] for name in op.reads} | set(outputs)
    passed = [name for op in part for name in op.gives if name in behind]
    return Block(tuple(part), tuple(reads), tuple(passed))


def _marked(value: Any, names: Mapping[int, str]) -> Any:
    """``value`` with a mark in each named tensor's place."""
    if isinstance(value, Tensor):
        return _Value(names[id(value)]) if id(value) in names else value
    return _mapped(value, lambda item: _marked(item, names))


def _filled(value: Any, known: Mapping[str, Tensor]) -> Any:
    """The inverse of :func:`_marked`."""
    if isinstance(value, _Value):
        return known[value.name]
    return _mapped(value, lambda item: _filled(item, known))


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {name: change(item) for name, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(change(item) for item in value)
    return value
