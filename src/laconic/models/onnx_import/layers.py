"""ONNX nodes that have weights, as the torch layers that steps know: convolutions, linear layers, batch norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic.models.onnx_import.graph import Node
from laconic.models.onnx_import.operators.pooling import flat_pads, spatial_pads

_CONVOLUTIONS: dict[int, Any] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_TRANSPOSED: dict[int, Any] = {3: nn.ConvTranspose1d, 4: nn.ConvTranspose2d, 5: nn.ConvTranspose3d}
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@dataclass(frozen=True)
class Layer:
    """A layer and how its weight lies in the graph; ``pad``, if any, comes before it."""

    module: nn.Module
    transposed: bool = False
    pad: SpatialPad | None = None


class SpatialPad(nn.Module):
    """The zeros that a convolution puts around its input, where torch's own convolution cannot: unevenly."""

    def __init__(self, node: Node, kernel: tuple[int, ...]) -> None:
        super().__init__()
        self.node = node
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, flat_pads(*spatial_pads(self.node, x.shape[2:], self.kernel)))


def make_layer(node: Node, constants: Mapping[int, Tensor], x: Tensor) -> Layer | None:
    """The layer that ``node`` is, or None. ``constants`` are its constant inputs by position, ``x`` an example."""
    make = {
        "Conv": _convolution,
        "ConvTranspose": _transposed,
        "Gemm": _gemm,
        "MatMul": _matmul,
        "BatchNormalization": _batch_norm,
    }.get(node.operator)
    if make is None or node.domain or set(constants) != set(range(1, len(node.inputs))):
        return None
    layer = make(node, constants, x)
    if layer is not None:
        layer.module.eval()
    return layer


def _convolution(node: Node, constants: Mapping[int, Tensor], x: Tensor) -> Layer | None:
    weight, bias = constants[1], constants.get(2)
    kernel = tuple(weight.shape[2:])
    rank = len(kernel)
    before, after = spatial_pads(node, x.shape[2:], kernel)
    strides = node.get("strides", [1] * rank)
    moving = node.get("auto_pad", "NOTSET").startswith("SAME") and max(strides) > 1
    inline = before == after and not moving
    groups = node.get("group", 1)
    module = _CONVOLUTIONS[weight.dim()](
        weight.shape[1] * groups,
        weight.shape[0],
        kernel,
        stride=tuple(strides),
        padding=tuple(before) if inline else 0,
        dilation=tuple(node.get("dilations", [1] * rank)),
        groups=groups,
        bias=bias is not None,
        device="meta",
    )
    return Layer(_filled(module, weight, bias), pad=None if inline else SpatialPad(node, kernel))


def _transposed(node: Node, constants: Mapping[int, Tensor], x: Tensor) -> Layer | None:
    weight, bias = constants[1], constants.get(2)
    rank = weight.dim() - 2
    pads = node.get("pads", [0] * 2 * rank)
    if node.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in node.attributes or pads[:rank] != pads[rank:]:
        return None
    groups = node.get("group", 1)
    module = _TRANSPOSED[weight.dim()](
        weight.shape[0],
        weight.shape[1] * groups,
        tuple(weight.shape[2:]),
        stride=tuple(node.get("strides", [1] * rank)),
        padding=tuple(pads[:rank]),
        output_padding=tuple(node.get("output_padding", [0] * rank)),
        dilation=tuple(node.get("dilations", [1] * rank)),
        groups=groups,
        bias=bias is not None,
        device="meta",
    )
    return Layer(_filled(module, weight, bias))


def _gemm(node: Node, constants: Mapping[int, Tensor], x: Tensor) -> Layer | None:
    if node.get("transA", 0) or node.get("alpha", 1.0) != 1.0 or node.get("beta", 1.0) != 1.0:
        return None
    transposed = not node.get("transB", 0)
    return linear(constants[1], constants.get(2), transposed)


def _matmul(node: Node, constants: Mapping[int, Tensor], x: Tensor) -> Layer | None:
    return linear(constants[1], None, transposed=True) if x.dim() > 1 else None


def linear(weight: Tensor, bias: Tensor | None, transposed: bool) -> Layer | None:
    """x W + b, with ``weight`` lying (in, out) if ``transposed``; None where the bias is no row of the output."""
    if weight.dim() != 2:
        return None
    rows = weight.T if transposed else weight
    if bias is not None and not is_row(bias, len(rows)):
        return None
    module = nn.Linear(rows.shape[1], rows.shape[0], bias=bias is not None, device="meta")
    return Layer(_filled(module, rows, bias), transposed)


def is_row(bias: Tensor, width: int) -> bool:
    """Whether ``bias`` is (width) or (1, width)."""
    return bias.dim() in (1, 2) and bias.numel() == width == bias.shape[-1]


def _batch_norm(node: Node, constants: Mapping[int, Tensor], x: Tensor) -> Layer | None:
    if node.get("training_mode", 0) or len([name for name in node.outputs if name]) > 1 or x.dim() not in _NORMS:
        return None
    weight, bias, mean, variance = (constants[i] for i in range(1, 5))
    module = _NORMS[x.dim()](len(weight), eps=node.get("epsilon", 1e-5), device="meta")
    module.running_mean, module.running_var = mean.clone(), variance.clone()
    module.num_batches_tracked = torch.tensor(0)
    return Layer(_filled(module, weight, bias))


def _filled(module: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    module.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
    if bias is not None:
        module.bias = nn.Parameter(bias.reshape(-1).clone())
    return module  # type: ignore[no-any-return]
