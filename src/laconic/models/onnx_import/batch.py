"""Free the batch dimension of an ONNX graph that was exported for one sample, where that changes nothing.

The graph is made to take any batch, by naming its first dimension and, if that is not enough, by letting each Reshape
whose constant shape begins with 1 copy that dimension from its input. It is kept only if ONNX Runtime then gives for
two samples together what it gives for each alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor

from laconic.errors import ModelError
from laconic.models.onnx_import.graph import Input, read_inputs, read_nodes, to_tensor
from laconic.models.onnx_import.session import open_session, run_session
from laconic.models.onnx_import.verify import same

_SIDES = (224, 32, 640)
"""What is tried for dimensions, other than the batch, that the graph leaves open."""


@dataclass(frozen=True)
class Freed:
    """A graph, the one batch that it takes (None: any), an example for each input and ONNX Runtime's outputs on it."""

    model: ModelProto
    fixed_batch: int | None
    example: list[Tensor]
    outputs: list[Tensor]


def free_batch(model: ModelProto, folder: str) -> Freed:
    """``folder``: where the graph's external data is."""
    inputs = read_inputs(model)
    fixed = next((entry.shape[0] for entry in inputs if entry.shape and entry.shape[0] is not None), None)
    if fixed in (None, 1):
        for freed in (_named(model), _reshaped(_named(model))):
            for pair in _examples(inputs, 2):
                outputs = _outputs_if_free(freed, pair, folder)
                if outputs is not None:
                    return Freed(freed, None, pair, outputs)
    fault: Exception | None = None
    for example in _examples(inputs, fixed or 1):
        try:
            outputs = run_session(open_session(model.SerializeToString(), folder=folder), example)
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            fault = error
        else:
            return Freed(model, fixed or 1, example, outputs)
    raise ModelError(f"ONNX Runtime cannot run the file: {fault}")


def _examples(inputs: Sequence[Input], batch: int) -> Iterator[list[Tensor]]:
    """Random inputs: normal floats, integers 0 and 1; one set for each guess at the dimensions left open."""
    generator = torch.Generator().manual_seed(0)
    is_open = any(size is None for entry in inputs for size in entry.shape[1:])
    for side in _SIDES if is_open else _SIDES[:1]:
        yield [_random(entry, batch, side, generator) for entry in inputs]


def _random(entry: Input, batch: int, side: int, generator: torch.Generator) -> Tensor:
    shape = [side if size is None else size for size in entry.shape]
    shape[:1] = [batch] * len(shape[:1])
    if entry.dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=entry.dtype)
    return torch.randint(0, 2, shape, generator=generator).to(entry.dtype)


def _outputs_if_free(model: ModelProto, pair: Sequence[Tensor], folder: str) -> list[Tensor] | None:
    """What the graph gives for two samples, if it is what it gives for each of them, one after the other."""
    try:
        session = open_session(model.SerializeToString(), folder=folder)
        together = run_session(session, pair)
        alone = [run_session(session, [x[i : i + 1] for x in pair]) for i in range(2)]
    except Exception:  # a graph that cannot take two samples fails in as many ways as there are operators
        return None
    return together if all(_is_free(*values) for values in zip(together, *alone, strict=True)) else None


def _is_free(together: Tensor, one: Tensor, other: Tensor) -> bool:
    """Whether an output is one sample's after the other's, or the same whatever the samples are."""
    if same(one, other) and same(together, one):
        return True
    return one.dim() > 0 and same(together, torch.cat([one, other]))


def _named(model: ModelProto) -> ModelProto:
    """The graph with a name for the first dimension of its inputs and outputs."""
    freed = ModelProto()
    freed.CopyFrom(model)
    given = {tensor.name for tensor in model.graph.initializer}
    for value in (*freed.graph.input, *freed.graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if value.name not in given and dimensions:
            dimensions[0].dim_param = "batch"
    del freed.graph.value_info[:]
    return freed


def _reshaped(model: ModelProto) -> ModelProto:
    """The graph in which constant Reshapes to (1, ...) keep the first dimension of their input (a 0 says so)."""
    shapes = {tensor.name: to_tensor(tensor).tolist() for tensor in model.graph.initializer if len(tensor.dims) == 1}
    constants = [node for node in read_nodes(model) if node.operator == "Constant"]
    shapes.update((n.outputs[0], n.attributes["value"].tolist()) for n in constants if "value" in n.attributes)
    for i, node in enumerate(model.graph.node):
        shape = shapes.get(node.input[1]) if node.op_type == "Reshape" else None
        if isinstance(shape, list) and len(shape) > 1 and shape[0] == 1 and 0 not in shape:
            name = f"{node.output[0]}/shape_{i}"
            values = torch.tensor([0, *shape[1:]], dtype=torch.int64).numpy()
            model.graph.initializer.append(numpy_helper.from_array(values, name))
            node.input[1] = name
            kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)
    return model
