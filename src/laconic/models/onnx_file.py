"""``FILE.onnx``: any ONNX graph that ONNX Runtime runs, as a module whose layers can be changed and written back.

The module is compared with ONNX Runtime on a random input before it is handed out.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.inliner
from onnx import ModelProto, TensorProto

from laconic.errors import ModelError
from laconic.models.loaded import LoadedModel, require_finite
from laconic.models.onnx_import.batch import free_batch
from laconic.models.onnx_import.build import build
from laconic.models.onnx_import.graph import read_inputs, to_tensor
from laconic.models.onnx_import.module import OnnxModule
from laconic.models.onnx_import.relative import relative
from laconic.models.onnx_import.verify import agrees, verify

MOST_BYTES = 2**31 - 2**24
"""Of all weights together: one message of protobuf holds 2 GiB, and there is the graph too."""
_OTHER_FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def load(path: str) -> LoadedModel:
    model = _read(path)
    for tensor in model.graph.initializer:
        require_finite(tensor.name, to_tensor(tensor), masks=True)
    freed = free_batch(model)
    shapes = [entry.shape[1:] for entry in read_inputs(freed.model)]
    module = build(relative(freed.model), freed.example, freed.fixed_batch)
    if not agrees(module, freed.example, freed.outputs):
        module = build(freed.model, freed.example, freed.fixed_batch)
    verify(module, freed.example, freed.outputs)
    fixed = tuple(size for size in shapes[0] if size is not None)
    return LoadedModel(
        module=module,
        source=path,
        input_shape=fixed if len(fixed) == len(shapes[0]) else None,
        input_names=module.input_names,
        note=_note(module),
    )


def _read(path: str) -> ModelProto:
    """The file's graph: functions inlined, no initializer among the inputs, in float32."""
    if not Path(path).is_file():
        raise ModelError("no such file", got=path, wanted="an ONNX file")
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's and onnx's errors have no common base
        raise ModelError("the file cannot be read as ONNX", got=path, wanted=f"an ONNX file ({error})") from error
    if not model.graph.node:
        raise ModelError("the file cannot be read as ONNX", got=path, wanted="a graph with at least one node")
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if size > MOST_BYTES:  # protobuf cannot even count them then
        raise ModelError("the ONNX graph is too large", got=f"{path} of {size:,} bytes", wanted="less than 2 GiB")
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    given = {tensor.name: tensor for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in given]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 4)  # from 4 on, initializers need not be inputs
    types = {value.type.tensor_type.elem_type for value in inputs} | {tensor.data_type for tensor in given.values()}
    if types.intersection(_OTHER_FLOATS):
        raise ModelError("an ONNX file in another float type", got=path, wanted="float32")
    if not inputs:
        raise ModelError("the ONNX graph takes no input", got=path)
    return model


def _note(module: OnnxModule) -> str:
    notes = []
    if module.fixed_batch is not None:
        notes.append(f"the graph takes a batch of {module.fixed_batch} only")
    if module.unsupported:
        operators = ", ".join(sorted(set(module.unsupported.values())))
        notes.append(f"left to ONNX Runtime, neither changed nor counted: {operators}")
    return "; ".join(notes)
