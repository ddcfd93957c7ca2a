"""``FILE.onnx``: any ONNX graph that ONNX Runtime runs, as a module whose layers can be changed and written back.

The module is compared with ONNX Runtime on a random input before it is handed out. Matrices that lie in files beside
the graph stay there until a layer takes them over: a graph that holds them itself is at most 2 GiB.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.inliner
from onnx import ModelProto, TensorProto
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from laconic.errors import ModelError
from laconic.models.loaded import LoadedModel, require_finite
from laconic.models.onnx_import.batch import free_batch
from laconic.models.onnx_import.build import build
from laconic.models.onnx_import.graph import read_inputs, to_tensor
from laconic.models.onnx_import.module import OnnxModule
from laconic.models.onnx_import.relative import relative
from laconic.models.onnx_import.verify import agrees, verify

_OTHER_FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def load(path: str) -> LoadedModel:
    model, folder = _read(path), str(Path(path).parent)
    _require_finite(model, path, folder)
    freed = free_batch(model, folder)
    shapes = [entry.shape[1:] for entry in read_inputs(freed.model)]
    module = build(relative(freed.model), freed.example, freed.fixed_batch, folder)
    if not agrees(module, freed.example, freed.outputs):
        module = build(freed.model, freed.example, freed.fixed_batch, folder)
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
        model = _with_its_vectors(path)
    except Exception as error:  # protobuf's and onnx's errors have no common base
        raise ModelError("the file cannot be read as ONNX", got=path, wanted=f"an ONNX file ({error})") from error
    if not model.graph.node:
        raise ModelError("the file cannot be read as ONNX", got=path, wanted="a graph with at least one node")
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


def _with_its_vectors(path: str) -> ModelProto:
    """The graph with what it has in other files, but for the matrices; shapes are among the vectors."""
    model = onnx.load(path, load_external_data=False)
    matrices = [t for t in model.graph.initializer if uses_external_data(t) and len(t.dims) > 1]
    for tensor in matrices:
        tensor.data_location = TensorProto.DEFAULT  # so that they are passed over
    load_external_data_for_model(model, str(Path(path).parent))
    for tensor in matrices:
        tensor.data_location = TensorProto.EXTERNAL
    return model


def _require_finite(model: ModelProto, path: str, folder: str) -> None:
    for tensor in model.graph.initializer:
        try:
            values = to_tensor(tensor, folder)
        except Exception as error:  # as many kinds as there are ways to end a file too early
            problem = f"tensor {tensor.name} cannot be read: {error}"
            raise ModelError(problem, got=path, wanted="a file with all of its data") from error
        require_finite(tensor.name, values, masks=True)


def _note(module: OnnxModule) -> str:
    notes = []
    if module.fixed_batch is not None:
        notes.append(f"the graph takes a batch of {module.fixed_batch} only")
    if module.unsupported:
        operators = ", ".join(sorted(set(module.unsupported.values())))
        notes.append(f"left to ONNX Runtime, neither changed nor counted: {operators}")
    return "; ".join(notes)
