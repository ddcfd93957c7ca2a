"""TensorRT on an NVIDIA GPU, from an explicitly quantized ONNX file (:mod:`.tensorrt_file` has its rules).

What is fast there: signed symmetric integers, a scale per output channel of a weight, one per activation. Quantizers
belong in front of operators ("quantize all inputs of weighted operations", "do not quantize the outputs"), behind a
fused relu, and on the residual branch of an addition alone: the layer on the other branch takes the addition in
(NVIDIA, TensorRT Developer Guide, "Q/DQ Layer-Placement Recommendations"). Channel counts that are multiples of 16 fill
the INT8 tensor cores (same guide, "Tensor Core alignment").

The engine is built by ``tensorrt`` itself and not by ONNX Runtime's provider of it, which gives to other providers
whatever TensorRT refuses, unasked. It is strongly typed: each layer computes in the type that the file says, without
TF32 in place of float32. Building takes seconds to minutes. A call's time holds the copies to the GPU and back.

Where TensorRT is not installed a file can still be written, checked and computed by ONNX Runtime (:func:`simulate`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import nn

from laconic.core import Array, Arrays, Facts, Target, Traits
from laconic.errors import DeployError, MissingExtraError
from laconic.runtime import onnx_file
from laconic.runtime.session import Session
from laconic.runtime.tensorrt_file import problems, translated

SUFFIX = ".onnx"
DEVICES = ("cuda",)
SIMULATED = "checked structurally and computed by ONNX Runtime on this machine; not run on TensorRT"
_FLOAT_BITS = 32


def traits(target: Target) -> Traits:
    return Traits(
        activation="int8",
        symmetric=True,
        inputs_only=True,
        integer_operators=frozenset({"conv", "linear", "add", "avg_pool", "mean"}),
        float_output=True,
        channel_multiple=16,
    )


def deploy(model: nn.Module, example: Arrays, path: Path, target: Target) -> Facts:
    """Write ``model``; weights of fewer than 8 bits, and those of few values, are float32 in the file."""
    facts = onnx_file.deploy(model, example, path)
    facts["operators"] = translate(path, path)
    facts.pop("codebook_bits", None)
    if "short_weights" in facts:
        stored = {"stored_bits": _FLOAT_BITS, "computed": "float32"}
        facts["short_weights"] = [{**row, **stored} for row in facts["short_weights"]]
    return facts


def translate(path: Path, out: Path) -> dict[str, int]:
    """Write the ONNX file at ``path`` in TensorRT's form to ``out``; how often each operator occurs in it.

    Raises :class:`DeployError` where something in it has no such form.
    """
    model = translated(ir.from_proto(onnx.load(path)))
    found = problems(model)
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise DeployError(f"TensorRT does not read this file: {found[0]}{more}")
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    out.write_bytes(proto.SerializeToString())
    return onnx_file.count_operators(proto)


def simulate(path: Path, target: Target) -> Session:
    """The file computed by ONNX Runtime on the CPU, as it stands: without the pass that rounds float weights behind
    quantizers, which TensorRT does not have."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = target.threads, 3
    session = ort.InferenceSession(
        path.read_bytes(), options, ["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"]
    )

    def run(inputs: Arrays) -> list[Array]:
        return session.run(None, inputs)  # type: ignore[no-any-return]

    names = [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]
    batch = session.get_inputs()[0].shape[0]
    return Session(run, *names, batch=batch if isinstance(batch, int) else target.batch)


def open_file(path: Path, target: Target) -> Session:
    """Build an engine for the target's batch; raises :class:`MissingExtraError` without TensorRT, and
    :class:`DeployError` without a GPU or where TensorRT refuses the file."""
    try:
        import tensorrt
    except ImportError as error:
        raise MissingExtraError("tensorrt", "tensorrt") from error
    if not torch.cuda.is_available():
        raise DeployError("TensorRT needs a CUDA device, and torch sees none here")
    engine = _Engine(tensorrt, path, target.batch)
    return Session(engine.run, engine.inputs, engine.outputs, engine.batch)


class _Engine:
    """A built engine, its context, and the tensors on the GPU that it reads and writes."""

    def __init__(self, trt: Any, path: Path, batch: int, device: str = "cuda") -> None:
        self.logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
        builder = trt.Builder(self.logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self.logger)
        if not parser.parse_from_file(str(path)):
            reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
            raise DeployError(f"TensorRT cannot open the file: {' '.join((reasons or ['no reason'])[0].split())}")
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)
        profile = builder.create_optimization_profile()
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        self.batch = batch if inputs[0].shape[0] < 0 else int(inputs[0].shape[0])
        shapes = {x.name: (self.batch, *tuple(x.shape)[1:]) for x in inputs}
        for name, shape in shapes.items():
            profile.set_shape(name, shape, shape, shape)
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise DeployError("TensorRT cannot open the file: it builds no engine of it")
        self.runtime = trt.Runtime(self.logger)
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        self.context = self.engine.create_execution_context()
        self.inputs = list(shapes)
        self.outputs = [network.get_output(i).name for i in range(network.num_outputs)]
        for name, shape in shapes.items():
            self.context.set_input_shape(name, shape)
        self.tensors = {}
        for name in (*self.inputs, *self.outputs):
            kind = torch.as_tensor(np.empty(0, trt.nptype(self.engine.get_tensor_dtype(name)))).dtype
            self.tensors[name] = torch.empty(tuple(self.context.get_tensor_shape(name)), dtype=kind, device=device)
            self.context.set_tensor_address(name, self.tensors[name].data_ptr())
        self.stream = torch.cuda.Stream() if device == "cuda" else None  # type: ignore[no-untyped-call]

    def run(self, inputs: Arrays) -> list[Array]:
        """Copy in, compute, copy out; returns when all of it is done."""
        with torch.cuda.stream(self.stream):
            for name in self.inputs:
                self.tensors[name].copy_(torch.as_tensor(np.ascontiguousarray(inputs[name])))
            if not self.context.execute_async_v3(self.stream.cuda_stream if self.stream else 0):
                raise DeployError("TensorRT failed while it ran the file")
            return [self.tensors[name].cpu().numpy().copy() for name in self.outputs]


def layer_times(path: Path, target: Target, inputs: Arrays) -> dict[str, float]:
    """Nothing: what TensorRT fuses goes by names of its own."""
    return {}
