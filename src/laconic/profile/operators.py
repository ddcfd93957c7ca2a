"""How many multiply-accumulates each torch operator makes. One fused multiply-add is one MAC.

:data:`MACS` is the table. By convention elementwise operators, normalisation, pooling, reductions, resizing and data
movement make none: those are named in :data:`FREE` (or carry torch's own tag ``pointwise``). Everything else is
unknown, and is listed, never counted as zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Arguments = tuple[Any, ...]


def _convolution(inputs: Arguments, output: Tensor) -> int:
    """Each output sees C_in / groups x kernel inputs; transposed, each input reaches C_out / groups x kernel."""
    x, weight, transposed = inputs[0], inputs[1], inputs[6]
    pixels = x if transposed else output
    return int(pixels.numel() * math.prod(weight.shape[1:]))


def _product(first: int) -> Callable[[Arguments, Tensor], int]:
    """A product of matrices of which the left one is input number ``first``: (..., m, k) (..., k, n)."""
    return lambda inputs, output: int(output.numel() * inputs[first].shape[-1])


def _attention(inputs: Arguments, output: Any) -> int:
    """Q K^T and its product with V, for (..., L, E), (..., S, E) and (..., S, E_v)."""
    q, k, v = inputs[:3]
    return int(q.shape[:-1].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1]))


def _rnn_layer(inputs: Arguments, output: Any) -> int:
    """One layer and direction of an LSTM: both weights at every step of every sample."""
    x, to_gates, recurrent = inputs[:3]
    return int(x.shape[:-1].numel() * (to_gates.numel() + recurrent.numel()))


MACS: dict[str, Callable[[Arguments, Any], int]] = {
    "aten::convolution": _convolution,
    "aten::linear": _product(0),
    "aten::mm": _product(0),
    "aten::bmm": _product(0),
    "aten::mv": _product(0),
    "aten::dot": _product(0),
    "aten::addmm": _product(1),
    "aten::addmv": _product(1),
    "aten::baddbmm": _product(1),
    "aten::_addmm_activation": _product(1),
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_flash_attention": _attention,
    "aten::_scaled_dot_product_efficient_attention": _attention,
    "aten::_scaled_dot_product_cudnn_attention": _attention,
    "aten::_scaled_dot_product_fused_attention_overrideable": _attention,
    "aten::mkldnn_rnn_layer": _rnn_layer,
}

_NORMALISATION = """batch_norm native_batch_norm cudnn_batch_norm _native_batch_norm_legit
_native_batch_norm_legit_no_training _batch_norm_no_update native_layer_norm native_group_norm _fused_rms_norm
_softmax _log_softmax linalg_vector_norm norm renorm"""
_POOLING = """avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d
adaptive_max_pool3d max_pool2d_with_indices max_pool3d_with_indices fractional_max_pool2d"""
_REDUCTION = """mean sum prod amax amin aminmax max min argmax argmin any all var var_mean std logsumexp cumsum cumprod
sort topk median"""
_RESIZING = """upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d upsample_linear1d
upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa"""
_MOVEMENT = """cat stack clone copy copy_ contiguous _to_copy constant_pad_nd reflection_pad1d reflection_pad2d
replication_pad1d replication_pad2d replication_pad3d index index_select index_put index_put_ gather scatter scatter_
embedding roll flip repeat tril triu unsafe_split unsafe_chunk split_with_sizes_copy pixel_shuffle pixel_unshuffle
channel_shuffle nonzero _local_scalar_dense"""
_CREATION = """new_zeros new_ones new_full zeros zeros_like ones ones_like full full_like arange scalar_tensor zero_
fill fill_ fill_diagonal_"""
_ELEMENTWISE = """hardswish_ hardtanh_ leaky_relu_ elu_ clamp_ clamp_min_ masked_fill_ prelu _prelu_kernel glu
fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask
_fake_quantize_per_tensor_affine_cachemask_tensor_qparams"""

_IN_PLACE = """_unsafe_view as_strided_ t_ transpose_ squeeze_ unsqueeze_ detach_ empty empty_like empty_strided
new_empty new_empty_strided lift_fresh"""

FREE: frozenset[str] = frozenset(
    f"aten::{name}"
    for family in (_NORMALISATION, _POOLING, _REDUCTION, _RESIZING, _MOVEMENT, _CREATION, _ELEMENTWISE)
    for name in family.split()
) | {"laconic::fake_quantize"}
"""Known operators that make no MACs by convention."""

UNWRITTEN: frozenset[str] = frozenset(f"aten::{name}" for name in _IN_PLACE.split())
"""Operators that write no memory although their schema gives a new tensor."""

ONE_OUTPUT: frozenset[str] = frozenset(f"aten::{name}" for name in (*_NORMALISATION.split(), *_POOLING.split())) | {
    name for name in MACS if "scaled_dot_product" in name
}
"""Operators whose further outputs (indices, statistics) serve the gradient alone."""


def is_free(operator: Any) -> bool:
    """Whether a torch operator is known to make no MACs: named above, elementwise, or a mere view."""
    schema = operator._schema
    return schema.name in FREE | UNWRITTEN or torch.Tag.pointwise in operator.tags or is_view(operator)


def is_view(operator: Any) -> bool:
    """Whether what the operator gives is memory that its input already had, unchanged."""
    returns = operator._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
