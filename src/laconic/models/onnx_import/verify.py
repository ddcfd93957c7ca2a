"""Does the imported module compute what ONNX Runtime computes from the file?"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import torch
from torch import Tensor

from laconic.errors import ModelError
from laconic.models.onnx_import.module import OnnxModule
from laconic.models.onnx_import.session import run_graph

TOLERANCE = 1e-3
"""The largest difference that passes, as a share of the largest magnitude of the output."""


def same(found: Tensor, wanted: Tensor) -> bool:
    """Equal shapes and types, NaN and infinity in the same places, and the rest within the tolerance."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    if not wanted.is_floating_point():
        return torch.equal(found, wanted)
    finite = torch.isfinite(wanted)
    if not torch.equal(finite, torch.isfinite(found)):
        return False
    difference = (found[finite] - wanted[finite]).abs()
    return not difference.numel() or bool(difference.max() <= TOLERANCE * wanted[finite].abs().max() + 1e-6)


@torch.no_grad()
def agrees(module: OnnxModule, example: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    """Whether the module gives ``wanted``, ONNX Runtime's own outputs."""
    result = module(*example)
    found = result if isinstance(result, tuple) else (result,)
    return all(same(*pair) for pair in zip(found, wanted, strict=True))


def verify(module: OnnxModule, example: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    """Raise, with the first node that differs, unless the module gives ``wanted``, ONNX Runtime's own outputs."""
    if not agrees(module, example, wanted):
        raise ModelError(
            "the ONNX graph was not understood: the module's outputs differ from ONNX Runtime's",
            got=f"the first difference at {first_difference(module, example)}",
            wanted="a graph that laconic reproduces: please report it",
        )


def first_difference(module: OnnxModule, example: Sequence[Tensor]) -> str:
    """The first value, in the order of the graph, that the module computes otherwise than ONNX Runtime."""
    model = module.to_onnx()
    known = {name for node in model.graph.node for name in node.output}
    values = {name: value for name, value in module.values(*example).items() if name in known}
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in values)
    wanted = run_graph(model, example, optimize=False)
    operators = {node.output[0]: node.op_type for node in model.graph.node}
    for (name, value), reference in zip(values.items(), wanted, strict=True):
        if not same(value, reference):
            return f"{name} ({operators.get(name, 'a further output')})"
    return "no single node"
