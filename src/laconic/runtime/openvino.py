"""OpenVINO on the CPU, from the ONNX file.

Weights alone: MatMulNBits is read as Constant (u2, u4, u8) -> Convert -> Subtract -> Multiply -> MatMul and kept short:
the linear layer multiplies the codes. What it reads is rounded to 8 bits in groups of 32 while it runs (the property
DYNAMIC_QUANTIZATION_GROUP_SIZE). It gains where reading the weights takes the time: in wide layers, at batch 1.
Small chains of linear layers it fuses to one kernel of its own, which computes in float32.

Traps measured: on processors with bf16 it computes float layers in bf16 unless told otherwise (a legitimate candidate,
and a trap for baselines), so the precision is always set, from the file's own note; a free batch costs 3 to 17 %, so
the file is reshaped to the target's batch before it is compiled.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import nn

from laconic.core import Array, Arrays, Facts, Target, Traits
from laconic.errors import DeployError, MissingExtraError
from laconic.machine import cpu_flags
from laconic.runtime import onnx_codes, onnx_file
from laconic.runtime.computed import stored_bits, summed
from laconic.runtime.nodes import Arithmetic, Node, times_by_module, undisturbed
from laconic.runtime.session import Session

SUFFIX = ".onnx"
DEVICES = ("cpu",)
_PROFILED_CALLS = 40
_NOTES = ("layerType", "runtimePrecision", "outputPrecisions", "originalLayersNames")
_INTEGERS = frozenset({"u8", "i8"})
_LAYERS = frozenset({"Convolution", "FullyConnected", "MatMul"})
_COMPILED = "Subgraph"
_WEIGHTS_ALONE = {"u2": "2-bit weights", "u4": "4-bit weights", "u8": "8-bit weights", "i8": "8-bit weights"}
_FLOATS = {"f32": "float32", "bf16": "bfloat16"}
_RECURRENT = ("LSTM", "GRU", "RNN")
_NOT_RUN = frozenset({"Input", "Const", "Output"})
_QUANTIZERS = "q"
"""What nodes that quantize or dequantize are called in the files written here."""


def traits(target: Target) -> Traits:
    return Traits(
        activation="uint8",
        weight_bits=8,
        integer_operators=frozenset({"conv", "linear", "add", "avg_pool", "mean"}),
        float_output=True,
        weight_kernels=frozenset({2, 4, 8}),
        channel_multiple=8,
        widths=onnx_codes.WIDTHS,
        precisions=("f32", "bf16") if {"avx512_bf16", "amx_bf16", "bf16"} & cpu_flags() else ("f32",),
    )


def deploy(model: nn.Module, example: Arrays, path: Path, target: Target) -> Facts:
    facts = onnx_file.deploy(model, example, path)
    stored = stored_bits(onnx.load(path), {**facts.get("codebook_bits", {}), **facts.get("code_bits", {})})
    return {**facts, "computed": summed(stored, _kernels(path, target))}


def _kernels(path: Path, target: Target) -> dict[str, str]:
    """What each layer of the compiled graph computes in."""
    ends: dict[str, str] = _ends(path)
    found: dict[str, str] = {}
    whole: dict[str, str] = {}  # by layer of a part of the graph that is compiled as one kernel
    recurrent: set[str] = set()  # these nodes have lost their layers' names
    for node in _compiled(path, target).get_runtime_model().get_ordered_ops():
        notes = {key: node.get_rt_info()[key].astype(str) for key in _NOTES if key in node.get_rt_info()}
        if notes["layerType"] in ("RNNSeq", "RNNCell"):
            recurrent.add(_FLOATS.get(notes["runtimePrecision"], notes["runtimePrecision"]))
        if notes["layerType"] not in (*_LAYERS, _COMPILED):
            continue
        reads, precision = node.inputs()[0].get_source_output().get_node(), notes["runtimePrecision"]
        if reads.get_rt_info()["outputPrecisions"].astype(str).split(",")[0] in _INTEGERS:
            kind = "int8"
        else:
            kind = _WEIGHTS_ALONE.get(precision, _FLOATS.get(precision, precision))
        for origin in notes["originalLayersNames"].split(","):
            (whole if notes["layerType"] == _COMPILED else found)[_module_of(origin, ends)] = kind
    if len(recurrent) == 1:
        nodes = onnx.load(path, load_external_data=False).graph.node
        found |= dict.fromkeys((n.name.split("/")[0] for n in nodes if n.op_type in _RECURRENT), recurrent.pop())
    return whole | found


def open_file(path: Path, target: Target) -> Session:
    """Open ``path``; raises :class:`DeployError` if the runtime refuses it (an operator it lacks, say)."""
    compiled = _compiled(path, target)
    request = compiled.create_infer_request()
    input_names = [port.get_any_name() for port in compiled.inputs]
    output_names = [port.get_any_name() for port in compiled.outputs]

    def run(inputs: Arrays) -> list[Array]:
        results = request.infer({name: inputs[name] for name in input_names}, share_inputs=True)
        return [np.array(results[i]) for i in range(len(output_names))]

    return Session(run, input_names, output_names, batch=compiled.inputs[0].shape[0])


def optimized_operators(path: Path, target: Target) -> dict[str, int]:
    """How often each operator occurs in the graph that the runtime really runs, as ``type:precision``."""
    counts: dict[str, int] = {}
    for node in _compiled(path, target).get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        name = f"{info['layerType'].astype(str)}:{info['runtimePrecision'].astype(str)}"
        counts[name] = counts.get(name, 0) + 1
    return counts


def layer_times(path: Path, target: Target, inputs: Arrays) -> dict[str, float]:
    """Milliseconds in each module, from the runtime's own profile."""
    return times_by_module(executed(path, target, inputs))


def executed(path: Path, target: Target, inputs: Arrays) -> list[Node]:
    """The nodes that the compiled graph runs, in its order, with the time that each takes."""
    compiled = _compiled(path, target, profile=True)
    request = compiled.create_infer_request()
    feeds = dict(zip([port.get_any_name() for port in compiled.inputs], inputs.values(), strict=True))
    spent: dict[str, list[float]] = {}
    for _ in range(_PROFILED_CALLS):
        request.infer(feeds)
        for info in request.get_profiling_info():
            spent.setdefault(info.node_name, []).append(info.real_time.total_seconds() * 1e3)
    ends = _ends(path)
    found = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        name = node.get_friendly_name()
        notes = {key: node.get_rt_info()[key].astype(str) for key in _NOTES if key in node.get_rt_info()}
        operator = notes["layerType"]
        if operator in _NOT_RUN or name not in spent:
            continue
        origins = [_module_of(o, ends) for o in notes["originalLayersNames"].split(",") if o]
        layers = [origin for origin in origins if origin != _QUANTIZERS]
        computes, gives = (notes[key] in _INTEGERS for key in ("runtimePrecision", "outputPrecisions"))
        arithmetic: Arithmetic = "integer" if computes else "float"
        if (origins and not layers) or (operator == "Reorder" and computes != gives):
            arithmetic, layers = "convert", [_QUANTIZERS]
        found.append(
            Node(
                name=name,
                module=(layers or [operator])[0],
                operator=operator,
                arithmetic=arithmetic,
                reads=tuple(port.get_source_output().get_node().get_friendly_name() for port in node.inputs()),
                time_ms=undisturbed(spent[name]),
            )
        )
    return found


def _module_of(origin: str, ends: dict[str, str]) -> str:
    return re.split("[:/]", ends.get(origin, origin))[0]


def _ends(path: Path) -> dict[str, str]:
    """The runtime names a node that gives an output after that; by such a name, what the file calls the node."""
    graph = onnx.load(path, load_external_data=False).graph
    outputs = {output.name for output in graph.output}
    return {value: node.name for node in graph.node for value in node.output if value in outputs}


def _compiled(path: Path, target: Target, profile: bool = False) -> Any:
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", "openvino") from error
    core = openvino.Core()
    try:
        model = core.read_model(path)
        shapes = {}
        for port in model.inputs:
            shape = port.get_partial_shape()
            if shape[0].is_dynamic:
                shape[0] = target.batch
            shapes[port] = shape
        model.reshape(shapes)
        options = {
            "INFERENCE_NUM_THREADS": target.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": onnx_file.read_precision(path),
            "PERF_COUNT": profile,
        }
        return core.compile_model(model, "CPU", options)
    except Exception as error:  # openvino raises RuntimeError for whatever goes wrong
        raise DeployError(f"OpenVINO cannot open the file: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The last line that says something: OpenVINO puts file names and line numbers first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
