"""ONNX nodes without weights, as submodules: the node's function from the table, its constants as buffers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from laconic.models.onnx_import.graph import Node
from laconic.models.onnx_import.operators import NUMBERS, OPERATORS, PLAIN, PLAIN_SCALARS, UnsupportedError
from laconic.models.onnx_import.operators.numbers import as_numbers, as_tensor


class OnnxNode(nn.Module):
    """One node; called with the inputs that are neither constant nor absent, in order.

    ``fixed`` are the inputs that are handed over as Python numbers, by position; ``buffered`` those that are buffers;
    ``numbers`` the same as numbers, where they may be sizes.
    """

    def __init__(self, node: Node, constants: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.node = node
        self.plain = PLAIN.get(node.operator, ())
        self.fixed: dict[int, Any] = {i: None for i, name in enumerate(node.inputs) if not name}
        self.buffered: list[int] = []
        self.numbers: dict[int, Any] = {}
        self.shapes = {i: constant.shape for i, constant in constants.items()}
        for i, constant in constants.items():
            if i in self.plain or (not constant.dim() and i in PLAIN_SCALARS.get(node.operator, ())):
                self.fixed[i] = constant.tolist()
            else:
                self.buffered.append(i)
                self.numbers[i] = as_numbers(constant)
                self.register_buffer(f"constant_{i}", constant)

    def forward(self, *inputs: Any) -> Any:
        given = iter(inputs)
        places = range(len(self.node.inputs))
        moving = {i: next(given) for i in places if i not in self.fixed and i not in self.buffered}
        if any(not isinstance(value, Tensor) and i not in self.plain for i, value in moving.items()):
            known = {**self.fixed, **self.numbers, **moving}
            try:
                return self._on_numbers([known[i] for i in places])
            except UnsupportedError:
                moving = {i: value if i in self.plain else as_tensor(value) for i, value in moving.items()}
        buffers = {i: self.get_buffer(f"constant_{i}") for i in self.buffered}
        known = {**self.fixed, **buffers, **moving}
        return OPERATORS[self.node.operator](self.node, *(known[i] for i in places))

    def changed(self) -> list[int]:
        """The constant inputs, by position, that have another shape than in the graph."""
        return [i for i in self.buffered if self.get_buffer(f"constant_{i}").shape != self.shapes[i]]

    def _on_numbers(self, arguments: list[Any]) -> Any:
        """The node on sizes, where all that it takes are sizes."""
        function = NUMBERS.get(self.node.operator)
        whole = all(value is not None and not isinstance(value, Tensor) for value in arguments)
        if function is None or not whole:
            raise UnsupportedError(self.node.operator)
        return function(self.node, *arguments)

    def extra_repr(self) -> str:
        settings = {**self.node.attributes, **{f"input {i}": value for i, value in self.fixed.items()}}
        return ", ".join([self.node.operator, *(f"{name}={value}" for name, value in sorted(settings.items()))])
