"""LiteRT (once TensorFlow Lite) on the CPU, through its XNNPACK delegate.

What is fast here: signed activations, per-channel signed weights, all of the graph in integers, logits included. The
converter fuses the pairs of the graph only if it is told that the graph is quantized, and weights only as floats with a
pair of their own. Inputs and outputs of the file are float.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.fx import GraphModule

from laconic.core import Array, Arrays, Facts, Target, Traits
from laconic.errors import DeployError
from laconic.fake_quantize import attached
from laconic.runtime.export import torch_quiet
from laconic.runtime.integers import Names, keep_dimensions, kept_as_floats, lowered, optional, silent
from laconic.runtime.session import Session

SUFFIX = ".tflite"
DEVICES = ("cpu",)


def traits(target: Target) -> Traits:
    return Traits(
        activation="int8",
        integer_operators=frozenset({"conv", "linear", "add", "avg_pool", "mean"}),
        channel_multiple=8,
    )


def deploy(model: nn.Module, example: Arrays, path: Path, target: Target) -> Facts:
    """Write ``model`` at the target's batch; raises :class:`DeployError` where the converter lacks an operator."""
    module, args, names = lowered(model, example, target.batch, stored=False)
    facts = write(module, args, names, path, integers=attached(model) is not None)
    return {**facts, "computed": kept_as_floats(model)}


def write(module: GraphModule, args: tuple[Tensor, ...], names: Names, path: Path, integers: bool) -> Facts:
    """Write a graph that :func:`lowered` gave, or one that PT2E's own quantizers made of a model."""
    converter = optional("litert_torch", "litert")
    file = optional("laconic.runtime.tflite_file", "litert")
    keep_dimensions(module)
    with silent(), torch_quiet("write the model for LiteRT"):
        content = converter.convert(module, args, quant_config=_static() if integers else None).model_content()
    path.write_bytes(file.finished(content))
    names.append_to(path)
    return {"operators": operators(path), "batch": names.batch}


def _static() -> Any:
    """What tells the converter that a graph's pairs are static quantization; this quantizer itself never runs."""
    quantizer = optional("litert_torch.quantize.pt2e_quantizer", "litert")
    stated = quantizer.PT2EQuantizer().set_global(quantizer.get_symmetric_quantization_config())
    return optional("litert_torch.quantize.quant_config", "litert").QuantConfig(pt2e_quantizer=stated)


def operators(path: Path) -> dict[str, int]:
    """How often each operator occurs in the file, with the type of its output, as ``CONV_2D:int8``."""
    interpreter = _interpreter(path, 1, delegate=False)
    types = {t["index"]: np.dtype(t["dtype"]).name for t in interpreter.get_tensor_details()}
    found = Counter(f"{op['op_name']}:{types[op['outputs'][0]]}" for op in interpreter._get_ops_details())
    return dict(sorted(found.items()))


def open_file(path: Path, target: Target) -> Session:
    """Open ``path`` with the batch that it was written for; raises :class:`DeployError` if the runtime refuses it."""
    names = Names.of(path)
    interpreter = _interpreter(path, target.threads)
    given = [row["index"] for row in interpreter.get_input_details()]
    made = [row["index"] for row in interpreter.get_output_details()]

    def run(inputs: Arrays) -> list[Array]:
        for index, name in zip(given, names.inputs, strict=True):
            interpreter.set_tensor(index, inputs[name])
        interpreter.invoke()
        return names.arrange(inputs, [interpreter.get_tensor(index) for index in made])

    return Session(run, names.inputs, [name for name, _ in names.outputs], batch=names.batch)


def layer_times(path: Path, target: Target, inputs: Arrays) -> dict[str, float]:
    """Nothing: from Python the runtime does not tell how long its operators take."""
    return {}


def _interpreter(path: Path, threads: int, delegate: bool = True) -> Any:
    runtime = optional("ai_edge_litert.interpreter", "litert")
    kinds = runtime.OpResolverType
    kind = kinds.AUTO if delegate else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        with silent():
            interpreter = runtime.Interpreter(str(path), num_threads=threads, experimental_op_resolver_type=kind)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise DeployError(f"LiteRT cannot open the file: {str(error).splitlines()[0]}") from error
    return interpreter
