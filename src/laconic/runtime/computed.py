"""What a deployed file's layers are stored in, and what the runtime computes them in: read, not assumed.

How a weight is stored stands in the file; what becomes of it, in the graph that the runtime made of the file. A format
without a kernel is float32 by the time that it is used, however short it is stored.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import onnx

from laconic.core import Facts

LAYERS = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits", "LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"}
)
_KIND = onnx.TensorProto
_BITS: dict[int, int] = {
    **{_KIND.INT4: 4, _KIND.UINT4: 4, _KIND.INT8: 8, _KIND.UINT8: 8},
    **{_KIND.FLOAT8E4M3FN: 8, _KIND.FLOAT8E5M2: 8},
    **{_KIND.FLOAT16: 16, _KIND.BFLOAT16: 16, _KIND.FLOAT: 32},
}


def stored_bits(proto: onnx.ModelProto, codebook_bits: Mapping[str, float]) -> dict[str, int]:
    """The bits of a stored weight, by layer: ``codebook_bits``, by constant, for those that hold codes in fewer bits
    than their own type has."""
    made: dict[str, list[onnx.TensorProto]] = {tensor.name: [tensor] for tensor in proto.graph.initializer}
    for node in proto.graph.node:  # the constants that a value is computed from; none where of anything else too
        found = [made.get(source, []) for source in node.input if source]
        made |= dict.fromkeys(node.output, [tensor for part in found for tensor in part] if all(found) else [])
    bits = {}
    for node in proto.graph.node:
        held = made.get(node.input[1], []) if node.op_type in LAYERS else []
        layer = node.name.split("/")[0]
        if node.op_type == "MatMulNBits":
            bits[layer] = next(a.i for a in node.attribute if a.name == "bits")
        elif held:
            codes = max(held, key=lambda tensor: math.prod(tensor.dims))
            tables = [codebook_bits[tensor.name] for tensor in held if tensor.name in codebook_bits]
            bits[layer] = math.ceil(tables[0]) if tables else _BITS.get(codes.data_type, 0)
    return bits


def summed(stored: Mapping[str, int], computed: Mapping[str, str]) -> list[Facts]:
    """A row for each format: its ``stored_bits``, what it is ``computed`` in (``float32``; ``int8``: both sides;
    ``4-bit weights``: a kernel that reads them as stored), and how many ``layers``."""
    counts = Counter((bits, computed.get(layer, "unknown")) for layer, bits in stored.items())
    return [{"stored_bits": bits, "computed": kind, "layers": n} for (bits, kind), n in sorted(counts.items())]
