"""ExecuTorch on the CPU, with what its XNNPACK backend takes delegated to it.

What is fast here: signed activations, per-channel signed weights stored as codes, float biases (the backend quantizes
them itself), quantized logits. What the backend does not take runs in ExecuTorch's portable kernels, slowly.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from laconic.core import Array, Arrays, Facts, Target, Traits
from laconic.errors import DeployError
from laconic.runtime.export import torch_quiet
from laconic.runtime.integers import (
    Names,
    keep_dimensions,
    kept_as_floats,
    lowered,
    new_constant,
    optional,
    silent,
    value_of,
)
from laconic.runtime.session import Session

SUFFIX = ".pte"
DEVICES = ("cpu",)
_PAIRS = torch.ops.quantized_decomposed


def traits(target: Target) -> Traits:
    return Traits(activation="int8", integer_operators=frozenset({"conv", "linear", "add", "mean"}), channel_multiple=8)


def deploy(model: nn.Module, example: Arrays, path: Path, target: Target) -> Facts:
    """Write ``model`` at the target's batch; raises :class:`DeployError` where ExecuTorch lacks an operator."""
    module, args, names = lowered(model, example, target.batch, stored=True)
    return {**write(module, args, names, path), "computed": kept_as_floats(model)}


def write(module: GraphModule, args: tuple[Tensor, ...], names: Names, path: Path) -> Facts:
    """Write a graph that :func:`lowered` gave, or one that PT2E's own quantizers made of a model."""
    partitioner = optional("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch")
    exir = optional("executorch.exir", "executorch")
    keep_dimensions(module)
    _free_weights(module)
    with silent(), torch_quiet("write the model for ExecuTorch"):
        program = torch.export.export(module, args)
        edge = exir.to_edge_transform_and_lower(program, partitioner=[partitioner.XnnpackPartitioner()])
        operators = _operators(edge.exported_program().graph_module)
        made = edge.to_executorch()
    _require_kernels(made.executorch_program)
    path.write_bytes(made.buffer)
    names.append_to(path)
    return {"operators": operators, "batch": names.batch}


def _free_weights(module: GraphModule) -> None:
    """Weights stored as codes become float again where their layer has floats on one side: XNNPACK has no kernel for
    it, and the runtime none that gives back the numbers."""
    aten = torch.ops.aten
    fused = {aten.relu.default, aten.relu_.default, aten.relu6.default, aten.hardtanh.default, aten.hardtanh_.default}
    for node in list(module.graph.nodes):
        if node.target is not _PAIRS.dequantize_per_channel.default or node.args[0].op != "get_attr":
            continue
        for layer in list(node.users):
            source, result = layer.args[0], layer
            while source.target in (aten.pad.default, aten.constant_pad_nd.default):
                source = source.args[0]
            if len(result.users) == 1 and next(iter(result.users)).target in fused:
                result = next(iter(result.users))
            reads = source.target is _PAIRS.dequantize_per_tensor.default
            if reads and [n.target for n in result.users] == [_PAIRS.quantize_per_tensor.default]:
                continue
            args = [value_of(module, a) if isinstance(a, Node) else a for a in node.args]
            layer.replace_input_with(node, new_constant(module, node, node.target(*args)))
    module.graph.eliminate_dead_code()
    module.recompile()


def _operators(module: GraphModule) -> dict[str, int]:
    """How often each operator occurs, by name; those that XNNPACK runs as ``xnnpack:NAME``."""
    lowered_modules = optional("executorch.exir.lowered_backend_module", "executorch")
    found = Counter(_names_in(module))
    for _, delegated, _ in lowered_modules.get_lowered_submodules(module):
        found.update(f"xnnpack:{name}" for name in _names_in(delegated.original_module.graph_module))
    return dict(sorted(found.items()))


def _names_in(module: GraphModule) -> list[str]:
    return [n.target.__name__ for n in module.graph.nodes if n.op == "call_function" and "." in n.target.__name__]


def _require_kernels(program: Any) -> None:
    """Raise :class:`DeployError` for an operator that neither XNNPACK nor the runtime has: the file would not load."""
    portable_lib = optional("executorch.extension.pybindings.portable_lib", "executorch")
    known = set(portable_lib._get_operator_names())
    for plan in program.execution_plan:
        for operator in plan.operators:
            name = f"{operator.name}.{operator.overload}" if operator.overload else operator.name
            if name not in known:
                raise DeployError(f"ExecuTorch lacks the operator {name}")


def open_file(path: Path, target: Target) -> Session:
    """Open ``path`` with the batch that it was written for; raises :class:`DeployError` if the runtime refuses it."""
    portable_lib = optional("executorch.extension.pybindings.portable_lib", "executorch")
    names = Names.of(path)
    try:
        with silent():
            if portable_lib._threadpool_get_thread_count() != target.threads:
                portable_lib._unsafe_reset_threadpool(target.threads)
            program = portable_lib._load_for_executorch(str(path))
    except RuntimeError as error:
        raise DeployError(f"ExecuTorch cannot open the file: {str(error).splitlines()[0]}") from error

    def run(inputs: Arrays) -> list[Array]:
        given = [torch.as_tensor(np.ascontiguousarray(inputs[name])) for name in names.inputs]  # it ignores strides
        return names.arrange(inputs, [y.numpy() for y in program.forward(given)])

    return Session(run, names.inputs, [name for name, _ in names.outputs], batch=names.batch)


def layer_times(path: Path, target: Target, inputs: Arrays) -> dict[str, float]:
    """Nothing: the released runtime is built without its event tracer."""
    return {}
