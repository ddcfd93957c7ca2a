"""ONNX Runtime on the CPU.

What is fast here: unsigned activations (signed ones ran at 0.39x on a ResNet-20), per-channel signed weights, one
scale per activation tensor. Without VNNI the kernels add pairs of u8 x s8 products in 16 bits and saturate, so weights
keep to 7 bits there (the runtime's own advice, "reduce_range").
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import onnx
import onnxruntime as ort
from torch import nn

from laconic.core import Array, Arrays, Facts, JsonObject, Target, Traits
from laconic.errors import DeployError
from laconic.machine import cpu_flags
from laconic.runtime import onnx_codes, onnx_file
from laconic.runtime.computed import stored_bits, summed
from laconic.runtime.nodes import Arithmetic, Node, times_by_module, undisturbed
from laconic.runtime.session import Session

SUFFIX = ".onnx"
DEVICES = ("cpu",)
_PROFILED_CALLS = 40
_KERNEL = "_kernel_time"
_FLOAT_LAYERS = dict.fromkeys(
    ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "LSTM", "GRU", "RNN"), "float32"
)
_INTEGER_LAYERS = dict.fromkeys(
    ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeLSTM"), "int8"
)
_INTEGER_INSIDE = frozenset({"DynamicQuantizeMatMul", "DynamicQuantizeLSTM"})  # they take float and give float


def traits(target: Target) -> Traits:
    flags = cpu_flags()
    exact_sums = not flags or bool(flags & {"avx512_vnni", "avx_vnni", "asimddp"})
    return Traits(
        activation="uint8",
        weight_bits=8 if exact_sums else 7,
        integer_operators=frozenset({"conv", "linear", "add", "avg_pool", "mean"}),
        float_output=True,
        weight_kernels=frozenset({2, 4, 8}),
        channel_multiple=8,
        widths=onnx_codes.WIDTHS,
    )


def deploy(model: nn.Module, example: Arrays, path: Path, target: Target) -> Facts:
    facts = onnx_file.deploy(model, example, path, integer_lstm=True)
    stored = stored_bits(onnx.load(path), {**facts.get("codebook_bits", {}), **facts.get("code_bits", {})})
    return {**facts, "computed": summed(stored, _kernels(path, target))}


def _kernels(path: Path, target: Target) -> dict[str, str]:
    """What each layer of the optimized graph computes in."""
    found = {}
    for node in _optimized(path, target).graph.node:
        kind = _FLOAT_LAYERS.get(node.op_type) or _INTEGER_LAYERS.get(node.op_type)
        if node.op_type == "MatMulNBits":
            kind = f"{next(a.i for a in node.attribute if a.name == 'bits')}-bit weights"
        if kind:
            found[_module_of(node.name)] = kind
    return found


def open_file(path: Path, target: Target) -> Session:
    """Open ``path``; raises :class:`DeployError` if the runtime refuses it (an operator it lacks, say)."""
    session = _inference_session(path, _options(target))

    def run(inputs: Arrays) -> list[Array]:
        return session.run(None, inputs)  # type: ignore[no-any-return]

    names = [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]
    batch = session.get_inputs()[0].shape[0]
    return Session(run, *names, batch=batch if isinstance(batch, int) else target.batch)


def optimized_operators(path: Path, target: Target) -> dict[str, int]:
    """How often each operator occurs in the graph that the runtime really runs."""
    return onnx_file.count_operators(_optimized(path, target))


def _optimized(path: Path, target: Target) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        options = _options(target)
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.log_severity_level = 4  # it warns that the saved file is for this machine only
        _inference_session(path, options)
        return onnx.load(options.optimized_model_filepath)


def layer_times(path: Path, target: Target, inputs: Arrays) -> dict[str, float]:
    """Milliseconds in each module, from the runtime's own profile."""
    return times_by_module(executed(path, target, inputs))


def executed(path: Path, target: Target, inputs: Arrays) -> list[Node]:
    """The nodes of the optimized graph, in its order, with the time that each takes."""
    with tempfile.TemporaryDirectory() as folder:
        options = _options(target)
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.log_severity_level = 4  # it warns that the saved file is for this machine only
        session = _inference_session(path, options)
        feeds = dict(zip([i.name for i in session.get_inputs()], inputs.values(), strict=True))
        for _ in range(_PROFILED_CALLS):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    calls: dict[str, list[JsonObject]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            calls.setdefault(event["name"].removesuffix(_KERNEL), []).append(event)
    makers = {value: node.name for node in graph.node for value in node.output}
    return [
        Node(
            name=node.name,
            module=_module_of(node.name),
            operator=node.op_type,
            arithmetic=_arithmetic(node.op_type, calls[node.name][0]["args"]),
            reads=tuple(dict.fromkeys(makers[value] for value in node.input if value in makers)),
            time_ms=undisturbed([event["dur"] / 1e3 for event in calls[node.name]]),
        )
        for node in graph.node
        if node.name in calls
    ]


def _arithmetic(operator: str, described: JsonObject) -> Arithmetic:
    """A node whose first input is integers computes in them; an event describes inputs as a list of {type: shape}."""
    if operator in ("QuantizeLinear", "DequantizeLinear"):
        return "convert"
    types = [kind for value in described.get("input_type_shape", [])[:1] for kind in value]
    return "integer" if operator in _INTEGER_INSIDE or types in (["uint8"], ["int8"]) else "float"


def _module_of(node: str) -> str:
    """``fused fc1``, ``conv1:0_nchwc`` and ``conv1/1_token_5`` are of ``fc1`` and ``conv1``."""
    return re.split(r"[:/]|_token_\d+$|_nchwc$", node.removeprefix("fused "))[0]


def _options(target: Target) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = target.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _inference_session(path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises kinds of its own that it does not export
        raise DeployError(f"ONNX Runtime cannot open the file: {str(error).splitlines()[0]}") from error
