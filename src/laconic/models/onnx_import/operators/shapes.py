"""ONNX operators that move, pick or resize without computing. ``Any`` arguments are Python numbers or lists where the
graph gives a constant, tensors where it computes the shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from laconic.models.onnx_import.graph import Node
from laconic.models.onnx_import.operators.errors import UnsupportedError


def ints(value: Any) -> list[int]:
    if isinstance(value, Tensor):
        value = value.tolist()
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _axes(node: Node, axes: Any) -> list[int] | None:
    """``axes`` as an attribute (older opsets) or as an input."""
    given = node.get("axes", axes)
    return None if given is None else ints(given)


def _reshape(node: Node, x: Tensor, shape: Any) -> Tensor:
    wanted = ints(shape)
    if not node.get("allowzero", 0):
        wanted = [x.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return torch.reshape(x, wanted)


def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", 1) % (x.dim() + 1)
    if axis == 1:
        return torch.flatten(x, 1)
    return torch.reshape(x, (x.shape[:axis].numel(), x.shape[axis:].numel()))


def _transpose(node: Node, x: Tensor) -> Tensor:
    return torch.permute(x, node.get("perm", list(reversed(range(x.dim())))))


def _squeeze(node: Node, x: Tensor, axes: Any = None) -> Tensor:
    wanted = _axes(node, axes)
    return torch.squeeze(x) if wanted is None else torch.squeeze(x, tuple(wanted))


def _unsqueeze(node: Node, x: Tensor, axes: Any = None) -> Tensor:
    wanted = _axes(node, axes) or []
    rank = x.dim() + len(wanted)
    for axis in sorted(a % rank for a in wanted):
        x = torch.unsqueeze(x, axis)
    return x


def _split(node: Node, x: Tensor, sizes: Any = None) -> tuple[Tensor, ...]:
    axis = node.get("axis", 0)
    given = node.get("split", sizes)
    if given is not None:
        return torch.split(x, ints(given), axis)
    parts = node.get("num_outputs", len(node.outputs))
    return torch.split(x, -(-x.shape[axis] // parts), axis)


def _slice(node: Node, x: Tensor, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Tensor:
    first, last = ints(node.get("starts", starts)), ints(node.get("ends", ends))
    along = _axes(node, axes) or list(range(len(first)))
    strides = [1] * len(first) if steps is None else ints(steps)
    picked: list[slice] = [slice(None)] * x.dim()
    for begin, end, axis, step in zip(first, last, along, strides, strict=True):
        if step < 0:
            rows = range(x.shape[axis])[slice(begin, None if end < -x.shape[axis] else end, step)]
            x = torch.index_select(x, axis, torch.tensor(list(rows), device=x.device))
        else:
            picked[axis] = slice(begin, end, step)
    return x[tuple(picked)]


def _wrap(indices: Tensor, size: int) -> Tensor:
    """Indices below zero count from the end."""
    return torch.where(indices < 0, indices + size, indices)


def _gather(node: Node, x: Tensor, indices: Any) -> Tensor:
    axis = node.get("axis", 0) % x.dim()
    if isinstance(indices, int):
        return x[(*(slice(None),) * axis, indices)]
    rows = _wrap(indices.reshape(-1).long(), x.shape[axis])
    return torch.index_select(x, axis, rows).reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _gather_elements(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.get("axis", 0)
    return torch.gather(x, axis, _wrap(indices.long(), x.shape[axis]))


def _gather_nd(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    if node.get("batch_dims", 0):
        raise UnsupportedError("GatherND with batch_dims")
    return x[tuple(indices.long().unbind(-1))]


def _scatter_nd(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    if node.get("reduction", "none") != "none":
        raise UnsupportedError("ScatterND with a reduction")
    return torch.index_put(x, tuple(indices.long().unbind(-1)), updates)


def _scatter_elements(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    if node.get("reduction", "none") != "none":
        raise UnsupportedError("ScatterElements with a reduction")
    axis = node.get("axis", 0)
    return torch.scatter(x, axis, _wrap(indices.long(), x.shape[axis]), updates)


def _expand(node: Node, x: Tensor, shape: Any) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, ints(shape)))  # type: ignore[no-untyped-call]


def _pad(node: Node, x: Tensor, pads: Any = None, value: Any = None, axes: Any = None) -> Tensor:
    amounts = ints(node.get("pads", pads))
    along = list(range(x.dim())) if axes is None else ints(axes)
    before, after = [0] * x.dim(), [0] * x.dim()
    for i, axis in enumerate(along):
        before[axis], after[axis] = amounts[i], amounts[i + len(along)]
    flat = [amount for axis in reversed(range(x.dim())) for amount in (before[axis], after[axis])]
    while len(flat) > 2 and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[
        node.get("mode", "constant")
    ]
    if mode != "constant":
        return F.pad(x, flat, mode)
    fill = node.get("value", 0.0 if value is None else value)
    return F.pad(x, flat, "constant", fill.item() if isinstance(fill, Tensor) else fill)


def _constant_of_shape(node: Node, shape: Any) -> Tensor:
    value = node.get("value", torch.zeros(1))
    return torch.full(ints(shape), value.item(), dtype=value.dtype)


def _range(node: Node, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device)


def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    block = node.attributes["blocksize"]
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)  # n c' h b w b
    return x.reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(node: Node, x: Tensor) -> Tensor:
    block = node.attributes["blocksize"]
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)  # n b b c h' w'
    return x.reshape(n, c * block**2, h // block, w // block)


def _resize(node: Node, x: Tensor, roi: Any = None, scales: Any = None, sizes: Any = None) -> Tensor:
    """Resize of space alone, in the modes that torch has too."""
    mode = node.get("mode", "nearest")
    how = node.get("coordinate_transformation_mode", "half_pixel")
    rounding = node.get("nearest_mode", "round_prefer_floor")
    known = {
        ("nearest", "asymmetric", "floor"): ("nearest", None),
        ("linear", "half_pixel", ""): ("linear", False),
        ("linear", "pytorch_half_pixel", ""): ("linear", False),
        ("linear", "align_corners", ""): ("linear", True),
        ("cubic", "half_pixel", ""): ("bicubic", False),
        ("cubic", "pytorch_half_pixel", ""): ("bicubic", False),
        ("cubic", "align_corners", ""): ("bicubic", True),
    }.get((mode, how, rounding if mode == "nearest" else ""))
    plain = not any(node.get(name, 0) for name in ("antialias", "exclude_outside")) and "axes" not in node.attributes
    if known is None or not plain or node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise UnsupportedError(f"Resize {mode}, {how}, {rounding}")
    if mode == "cubic" and node.get("cubic_coeff_a", -0.75) != -0.75:
        raise UnsupportedError("cubic Resize with another coefficient")
    return _interpolate(x, known[0], known[1], scales, sizes)


def _upsample(node: Node, x: Tensor, scales: Any = None) -> Tensor:
    mode = node.get("mode", "nearest")
    if mode != "nearest":
        raise UnsupportedError(f"Upsample {mode}")
    return _interpolate(x, "nearest", None, node.get("scales", scales), None)


def _interpolate(x: Tensor, mode: str, align: bool | None, scales: Any, sizes: Any) -> Tensor:
    modes = {1: "linear", 2: "bilinear", 3: "trilinear"}
    mode = modes[x.dim() - 2] if mode == "linear" else mode
    if sizes is not None:
        wanted = ints(sizes)
    else:
        factors = scales.tolist() if isinstance(scales, Tensor) else scales
        wanted = [int(size * factor) for size, factor in zip(x.shape, factors, strict=True)]
    if wanted[:2] != list(x.shape[:2]):
        raise UnsupportedError("a Resize of batch or channels")
    return F.interpolate(x, size=wanted[2:], mode=mode, align_corners=align)


def _top_k(node: Node, x: Tensor, k: Any) -> tuple[Tensor, Tensor]:
    found = torch.topk(x, ints(k)[0], node.get("axis", -1), bool(node.get("largest", 1)), bool(node.get("sorted", 1)))
    return found.values, found.indices


def _trilu(node: Node, x: Tensor, k: Any = 0) -> Tensor:
    return (torch.triu if node.get("upper", 1) else torch.tril)(x, int(k))


def _one_hot(node: Node, indices: Tensor, depth: Any, values: Tensor) -> Tensor:
    classes = ints(depth)[0]
    if node.get("axis", -1) != -1:
        raise UnsupportedError("OneHot along another axis than the last")
    hot = F.one_hot(_wrap(indices.long(), classes), classes).bool()
    return torch.where(hot, values[1], values[0])


OPERATORS: dict[str, Callable[..., Any]] = {
    "Concat": lambda node, *inputs: torch.cat(inputs, node.attributes["axis"]),
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "NonZero": lambda node, x: torch.nonzero(x).T,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Resize": _resize,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": lambda node, x, repeats: torch.tile(x, ints(repeats)),
    "TopK": _top_k,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
    "Upsample": _upsample,
}
