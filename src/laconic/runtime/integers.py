"""An eager model as a graph whose quantizers are the pairs that LiteRT's and ExecuTorch's converters know.

Both take the operators of PT2E quantization (``quantized_decomposed``: quantize, then dequantize) and make integer
kernels of what lies between pairs. Here ``laconic::fake_quantize`` becomes such a pair, with the model's own scales: no
second quantizer places or calibrates anything. Unsigned 8-bit activations become signed ones with a zero point that is
128 lower, which stand for the same numbers to the bit; weights are the codes of their quantizer.

The graph has a fixed batch: where a size is free, both converters leave operators to slower kernels.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # it defines the operators of the pairs
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.utils import parametrize

from laconic import surgery
from laconic.core import Array, Arrays, Facts
from laconic.errors import DeployError, MissingExtraError
from laconic.fake_quantize import PER_TENSOR, GroupQuantize, weight_quantizer
from laconic.runtime.export import frozen_weights, torch_quiet

_ATEN = torch.ops.aten
_PAIRS = torch.ops.quantized_decomposed
_FAKE_QUANTIZE = torch.ops.laconic.fake_quantize.default
_NAMES = "laconic.json"


@dataclass(frozen=True)
class Names:
    """What such a file does not say of itself: its batch, the names of its inputs in the order that it takes them, and
    for each of the model's outputs where it comes from: a place among the file's outputs, or the name of an input."""

    batch: int
    inputs: tuple[str, ...]
    outputs: tuple[tuple[str, int | str], ...]

    def append_to(self, path: Path) -> None:
        """Write this behind the file's content, as a zip archive: so TFLite's own metadata travel."""
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(zipfile.ZipInfo(_NAMES), json.dumps(asdict(self)))  # its date is 1980: no clock in files

    @classmethod
    def of(cls, path: Path) -> Names:
        """What :meth:`append_to` wrote; raises :class:`DeployError` for a file that is damaged or another's."""
        try:
            with zipfile.ZipFile(path) as archive:
                stated = json.loads(archive.read(_NAMES))
        except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
            raise DeployError(f"cannot open the file: it is damaged, or not laconic's ({error})") from error
        return cls(stated["batch"], tuple(stated["inputs"]), tuple((name, where) for name, where in stated["outputs"]))

    def arrange(self, inputs: Arrays, found: list[Array]) -> list[Array]:
        """The model's outputs in their order, from what the file gave."""
        return [found[where] if isinstance(where, int) else inputs[where].copy() for _, where in self.outputs]


def lowered(
    model: nn.Module, example: Arrays, batch: int, stored: bool
) -> tuple[GraphModule, tuple[Tensor, ...], Names]:
    """The model at ``batch`` samples as a graph with quantize/dequantize pairs; its arguments, and their names.

    Weights are ``stored`` as int8 codes, or else kept as floats with a pair of their own. Raises :class:`DeployError`
    where torch cannot export the model.
    """
    inputs = {name: torch.as_tensor(np.resize(x, (batch, *x.shape[1:]))) for name, x in example.items()}
    model = model.eval()
    with torch_quiet("export the model"), torch.no_grad(), frozen_weights(model):
        names = list(surgery.call(model, inputs))
        args, kwargs = (tuple(inputs.values()), {}) if len(inputs) == 1 else ((), dict(inputs))
        module = torch.export.export(model, args, kwargs).module(check_guards=False)
        assert isinstance(module, GraphModule)
        _fold_constants(module)
        for node in [n for n in module.graph.nodes if n.target is _FAKE_QUANTIZE]:
            _lower(module, node, stored)
        outputs = _plain_signature(module, dict(zip(_placeholders(module), inputs, strict=True)))
        module.graph.eliminate_dead_code()
        module = GraphModule(module, module.graph)  # without the hook that checks the old signature
    return module, tuple(inputs.values()), Names(batch, tuple(inputs), tuple(zip(names, outputs, strict=True)))


def kept_as_floats(model: nn.Module) -> list[Facts]:
    """For the facts of a file: the layers whose weights have few values, which these files keep as float32."""
    layers = [x for x in surgery.weighted_layers(model).values() if parametrize.is_parametrized(x, "weight")]
    kept = [x for x in layers if (q := weight_quantizer(x)) is None or isinstance(q, GroupQuantize)]
    row = {"stored_bits": 32, "computed": "float32", "layers": len(kept), "rounded": True}
    return [row] if kept else []


def _fold_constants(module: GraphModule) -> None:
    """What is computed from constants alone becomes a constant, except for quantizers: a weight that is clustered or
    scaled reaches the converters as numbers, and the codes of a quantized one are still to be taken."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target is _FAKE_QUANTIZE or not node.all_input_nodes:
            continue
        if all(n.op == "get_attr" for n in node.all_input_nodes) and isinstance(node.meta.get("val"), Tensor):
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: value_of(module, n))
            node.replace_all_uses_with(new_constant(module, node, node.target(*args, **kwargs)))


def value_of(module: GraphModule, node: Node) -> Tensor:
    """What a constant of the graph holds."""
    path, _, name = str(node.target).rpartition(".")
    value = getattr(module.get_submodule(path), name)
    assert isinstance(value, Tensor)
    return value.detach()


def new_constant(module: GraphModule, before: Node, value: Tensor) -> Node:
    """A new constant of the graph, in front of ``before``."""
    name = f"constant_{sum(1 for _ in module.buffers())}"
    module.register_buffer(name, value.detach().contiguous())
    with module.graph.inserting_before(before):
        return module.graph.get_attr(name)


def _lower(module: GraphModule, node: Node, stored: bool) -> None:
    """Replace a quantizer: of a constant by its codes, of an 8-bit activation by a pair, any other by what it does."""
    x, scale_node, zero_node, qmin, qmax, axis = node.args
    assert isinstance(x, Node)
    scale, zero = value_of(module, scale_node), value_of(module, zero_node)  # type: ignore[arg-type]
    constant = x.op == "get_attr"
    if not constant and (axis != PER_TENSOR or qmax - qmin != 255):  # type: ignore[operator]
        node.replace_all_uses_with(_simulated(module.graph, node))
        return
    shift = 128 if qmin >= 0 else 0  # type: ignore[operator]
    low, high = (-127, 127) if constant and not shift else (-128, 127)
    kind = "per_tensor" if axis == PER_TENSOR else "per_channel"
    how: tuple[Any, ...] = (low, high, torch.int8)
    if axis == PER_TENSOR:
        how = (float(scale), int(zero) - shift, *how)
    else:
        scales, zeros = (new_constant(module, node, t) for t in (scale, zero.long() - shift))
        how = (scales, zeros, axis, *how)
    quantize, dequantize = (getattr(_PAIRS, f"{verb}_{kind}").default for verb in ("quantize", "dequantize"))
    with module.graph.inserting_before(node):
        codes = module.graph.call_function(quantize, (x, *how))
    if constant and stored:
        args = [value_of(module, a) if isinstance(a, Node) else a for a in codes.args]
        codes = new_constant(module, node, quantize(*args))
    for user in list(node.users):  # each its own: XNNPACK swallows one that an operator of integers reads
        with module.graph.inserting_before(node):
            user.replace_input_with(node, module.graph.call_function(dequantize, (codes, *how)))


def _simulated(graph: torch.fx.Graph, node: Node) -> Node:
    """A quantizer that has no integer kernel, in float: clamp(round(x / s) + z, qmin, qmax), then back."""
    x, scale, zero, qmin, qmax, axis = node.args
    assert isinstance(x, Node)
    with graph.inserting_before(node):
        if axis != PER_TENSOR:
            shape = [-1 if i == axis else 1 for i in range(x.meta["val"].dim())]
            scale, zero = (graph.call_function(_ATEN.reshape.default, (p, shape)) for p in (scale, zero))
        levels = graph.call_function(_ATEN.div.Tensor, (x, scale))
        levels = graph.call_function(_ATEN.add.Tensor, (graph.call_function(_ATEN.round.default, (levels,)), zero))
        levels = graph.call_function(_ATEN.clamp.default, (levels, qmin, qmax))
        return graph.call_function(_ATEN.mul.Tensor, (graph.call_function(_ATEN.sub.Tensor, (levels, zero)), scale))


def keep_dimensions(module: GraphModule) -> None:
    """Means keep their dimensions, which are dropped behind them, and behind their quantizers: XNNPACK takes no others,
    and LiteRT's converter (litert-torch 0.10) transposes all that others read."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is not _ATEN.mean.dim or len(node.args) != 2 or node.kwargs:
            continue
        with graph.inserting_before(node):
            mean = graph.call_function(_ATEN.mean.dim, (*node.args, True))
            for user in list(node.users):
                if user.target is _PAIRS.quantize_per_tensor.default:
                    codes = graph.call_function(_PAIRS.quantize_per_tensor.default, (mean, *user.args[1:]))
                    mean = graph.call_function(_PAIRS.dequantize_per_tensor.default, (codes, *user.args[1:]))
                    break
            dropped = graph.call_function(_ATEN.reshape.default, (mean, list(node.meta["val"].shape)))
        node.replace_all_uses_with(dropped)
        graph.erase_node(node)
    module.recompile()


def _placeholders(module: GraphModule) -> list[Node]:
    return [n for n in module.graph.nodes if n.op == "placeholder"]


def _plain_signature(module: GraphModule, inputs: Mapping[Node, str]) -> list[int | str]:
    """Make the graph take its arguments by position and give a tuple of different values that it computed; returns
    where each of the outputs comes from now."""
    (output,) = (n for n in module.graph.nodes if n.op == "output")
    values = output.all_input_nodes
    flat = torch.utils._pytree.tree_leaves(output.args[0])
    computed = [n for n in values if n not in inputs]
    output.args = (tuple(computed),)
    module.graph.set_codegen(torch.fx.graph.CodeGen())
    return [inputs[n] if n in inputs else computed.index(n) for n in flat if isinstance(n, Node)]


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """While this lasts nothing reaches the standard error: the runtimes' own libraries write there whatever they do."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def optional(module: str, extra: str) -> Any:
    """A module of an optional runtime; raises :class:`MissingExtraError` where it is not installed."""
    try:
        with silent():
            return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(module.partition(".")[0], extra) from error
