"""An ONNX graph as an ``nn.Module``: one submodule per node, called in the order of the graph."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from onnx import ModelProto
from torch import Tensor, nn

from laconic.models.onnx_import.opaque import OpaqueNode
from laconic.models.onnx_import.operators.numbers import as_tensor
from laconic.models.onnx_import.write import Written, write


@dataclass(frozen=True)
class Run:
    """One call: the submodule at ``path`` takes the values ``inputs`` and gives ``outputs``; ``last`` are the values
    that nobody reads afterwards."""

    path: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last: tuple[str, ...] = ()


class Source:
    """The graph that a module came from. It never changes, so copies of the module share it."""

    def __init__(self, model: ModelProto, written: Mapping[str, Written], values: Mapping[str, str]) -> None:
        self.model = model
        self.written = written
        self.values = values

    def __deepcopy__(self, memo: dict[int, Any]) -> Source:
        return self


class OnnxModule(nn.Module):
    """Takes the graph's inputs, by position or by name, and gives its outputs: a tensor, or a tuple of several.

    ``fixed_batch`` is the only batch that the graph takes, if it does not take any: larger ones, its multiples, are
    run in pieces. ``unsupported`` are the submodules that ONNX Runtime runs, with their operators.
    """

    def __init__(
        self,
        submodules: Mapping[str, nn.Module],
        plan: tuple[Run, ...],
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        source: Source,
        fixed_batch: int | None,
    ) -> None:
        super().__init__()
        for path, module in submodules.items():
            self.add_module(path, module)
        self.plan = plan
        self.input_names = inputs
        self.output_names = outputs
        self.source = source
        self.fixed_batch = fixed_batch

    @property
    def unsupported(self) -> dict[str, str]:
        return {name: module.operator for name, module in self.named_children() if isinstance(module, OpaqueNode)}

    def forward(self, x: Tensor | None = None, /, *more: Tensor, **named: Tensor) -> Tensor | tuple[Tensor, ...]:
        inputs = () if x is None else (x, *more)
        given = {**dict(zip(self.input_names, inputs, strict=False)), **named}
        values = [given[name] for name in self.input_names]
        if self.fixed_batch is None or len(values[0]) == self.fixed_batch:
            results = self._run(values)
        else:
            pieces = zip(*(torch.split(value, self.fixed_batch) for value in values), strict=True)
            results = [torch.cat(parts) for parts in zip(*(self._run(list(piece)) for piece in pieces), strict=True)]
        return results[0] if len(results) == 1 else tuple(results)

    def _run(self, inputs: list[Tensor]) -> list[Tensor]:
        values: dict[str, Any] = dict(zip(self.input_names, inputs, strict=True))
        for run in self.plan:
            self._call(run, values)
            for name in run.last:
                del values[name]
        return [as_tensor(values[name]) for name in self.output_names]

    def _call(self, run: Run, values: dict[str, Any]) -> None:
        result = self.get_submodule(run.path)(*(values[name] for name in run.inputs))
        results = result if isinstance(result, tuple) else (result,)
        values.update((name, value) for name, value in zip(run.outputs, results, strict=False) if name)

    @torch.no_grad()
    def values(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Every value of the graph that is computed from the inputs, by its ONNX name."""
        values: dict[str, Any] = dict(zip(self.input_names, inputs, strict=True))
        for run in self.plan:
            self._call(run, values)
        return {name: as_tensor(value) for name, value in values.items()}

    def value_name(self, path: str, index: int = 0) -> str:
        """The ONNX name of what the submodule at ``path`` gives, or of its output number ``index``.

        A padding that is part of a convolution has no value of its own: there it is the value that is padded.
        """
        outputs = next(run.outputs for run in self.plan if run.path == path)
        return self.source.values.get(outputs[index], outputs[index])

    def to_onnx(self) -> ModelProto:
        """The graph with the weights and biases that the layers have now."""
        return write(self.source.model, self.source.written, self)

    def extra_repr(self) -> str:
        """A hash of the graph: what is computed from what is not in the submodules."""
        wiring = repr([(run.path, run.inputs, run.outputs) for run in self.plan])
        return f"graph={hashlib.sha256(wiring.encode()).hexdigest()[:16]}"


RESERVED = frozenset((*dir(OnnxModule), "training", "plan", "input_names", "output_names", "source", "fixed_batch"))
"""Names that a submodule cannot have."""
