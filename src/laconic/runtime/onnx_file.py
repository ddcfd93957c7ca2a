"""An eager model, fake-quantized or not, written as one ONNX file: shared by the runtimes that read ONNX."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from google.protobuf.message import EncodeError
from torch import nn

from laconic.core import Arrays, Facts
from laconic.errors import DeployError
from laconic.runtime import onnx_blocks, onnx_codebook, onnx_codes, onnx_recurrent
from laconic.runtime.export import frozen_weights, onnx_of, program_of
from laconic.runtime.onnx_finish import finish
from laconic.runtime.onnx_place import graph_of

_PRECISION = "laconic.precision"
_MOST_BYTES = 2**31 - 2**24  # of weights: there is the graph too


def deploy(
    model: nn.Module, example: Arrays, path: Path, integer_lstm: bool = False, short_codes: bool = True
) -> Facts:
    """Write ``model`` to ``path`` and say what the file holds.

    A model is exported with a free batch size (axis 0); one that came from an ONNX file is written back into it.
    ``integer_lstm``: LSTMs with rounded weights become the integer one of ONNX Runtime (:mod:`.onnx_recurrent`).
    ``short_codes``: codes of 2 to 6 bits are stored in as many (:mod:`.onnx_codes`), else in 8: that is for a small
    file which is going to be packed, where the nodes that decode them weigh more than the codes' empty bits.
    """
    with frozen_weights(model, hide=True):
        if hasattr(model, "to_onnx"):
            graph = graph_of(model)
        else:
            program, outputs = program_of(model, {name: torch.as_tensor(x[:2]) for name, x in example.items()})
            graph = onnx_of(program, list(example), outputs)
        short = [*(onnx_recurrent.store(graph) if integer_lstm else []), *onnx_blocks.store(graph)]
        onnx_codebook.fold_norms(graph)
        finish(graph)
        codebooks = onnx_codebook.store(graph)
        codes = onnx_codes.store(graph) if short_codes else {}
    precision = getattr(model, "precision", "f32")
    if precision != "f32":
        graph.metadata_props[_PRECISION] = precision
    proto = ir.to_proto(graph)
    del proto.graph.value_info[:]  # the shapes of constants, once more
    try:
        path.write_bytes(proto.SerializeToString())
    except EncodeError as error:
        if sum(len(tensor.raw_data) for tensor in proto.graph.initializer) <= _MOST_BYTES:
            raise MemoryError("protobuf had no memory left to write the network") from error
        raise DeployError("the network is larger than 2 GiB, the most that one ONNX file can hold") from error
    facts: Facts = {"operators": count_operators(proto), "precision": precision}
    found = {"short_weights": short, "codebook_bits": codebooks, "code_bits": codes}
    return {**facts, **{name: value for name, value in found.items() if value}}


def read_precision(path: Path) -> str:
    """The float type that the file asks to be computed in: ``f32`` unless it is ONNX and says otherwise."""
    if path.suffix != ".onnx":
        return "f32"
    notes: dict[str, str] = {p.key: p.value for p in onnx.load(path, load_external_data=False).metadata_props}
    return notes.get(_PRECISION, "f32")


def count_operators(proto: onnx.ModelProto) -> dict[str, int]:
    """How often each operator occurs, by name in alphabetical order."""
    names = sorted(node.op_type for node in proto.graph.node)
    return {name: names.count(name) for name in dict.fromkeys(names)}
