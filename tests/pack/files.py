"""Small ONNX files that hold every kind of weight that laconic writes, made without torch."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def weights(shape: tuple[int, ...], reach: int, seed: int = 0) -> np.ndarray:
    """Laplacian integers from -reach to reach: what the weights of a layer look like when they are rounded."""
    x = np.random.default_rng(seed).laplace(scale=reach / 4, size=shape)
    return np.clip(np.rint(x), -reach, reach).astype(np.int64)


def packed(codes: np.ndarray, base: int, dtype: type) -> np.ndarray:
    """Codes from 0 to base - 1, several in a number, the first in its lowest digits."""
    end = 2**31 if dtype is np.int32 else 2 ** (8 * np.dtype(dtype).itemsize)
    count = max(n for n in range(1, 32) if base**n <= end)
    filled = np.pad(codes.ravel(), (0, -codes.size % count)).reshape(-1, count)
    return (filled @ base ** np.arange(count)).astype(dtype)


def small(seed: int = 0) -> bytes:
    """A float and an int8 convolution, biases of both kinds, ternary digits behind Div and Mod, MatMulNBits, int4."""
    floats = np.random.default_rng(seed).normal(size=(4, 3, 3, 3)).astype(np.float32)
    ternary = weights((16, 16, 3, 3), 1, seed)
    blocks = packed(weights((8, 32), 7, seed) + 8, 16, np.uint8).reshape(8, 1, 16)
    int4 = packed(weights((4, 9), 7, seed) % 16, 16, np.uint8).tobytes()
    arrays = {
        "conv.weight": floats,
        "conv.bias": floats[0, 0, 0],
        "fc.weight": weights((16, 24), 127, seed).astype(np.int8),
        "fc.bias": weights((16,), 2**17, seed).astype(np.int32),
        "codes": packed(ternary + 1, 3, np.uint16)[:, None],
        "powers": 3 ** np.arange(10, dtype=np.int64),
        "base": np.array([3], np.int64),
        "table": np.array([-0.5, 0.0, 0.5], np.float32),
        "shape": np.array(ternary.shape, np.int64),
        "blocks": blocks,
        "half": floats[0].astype(np.float16),
    }
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    tensors.append(helper.make_tensor("short", TensorProto.INT4, [4, 9], int4, raw=True))
    nodes = [
        helper.make_node("Cast", ["codes"], ["a"], to=TensorProto.INT64),
        helper.make_node("Div", ["a", "powers"], ["b"]),
        helper.make_node("Mod", ["b", "base"], ["c"]),
        helper.make_node("Gather", ["table", "c"], ["d"]),
        helper.make_node("Reshape", ["d", "shape"], ["e"]),
        helper.make_node("MatMulNBits", ["x", "blocks"], ["y"], domain="com.microsoft", bits=4, K=32, N=8),
    ]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])
    graph = helper.make_graph(nodes, "g", [value], [out], tensors)
    return helper.make_model(graph).SerializeToString()


def layer(array: np.ndarray) -> bytes:
    """A file that holds one weight."""
    graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(array, "weight")])
    return onnx.helper.make_model(graph).SerializeToString()
