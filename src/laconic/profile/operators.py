"""What each torch operator computes: multiply-accumulates, and elementwise operations beside them.

:data:`MACS` and :data:`FLOPS` are the tables, one function of the operator's arguments and result per operator. One
fused multiply-add is one MAC; products make nothing else (a bias starts the sum that it is added to). By convention
normalisation, pooling, reductions, resizing and elementwise operators make no MACs. An elementwise function of a
number, exp or erf too, is one operation. An operator in neither table, without torch's own tag ``pointwise`` and that
moves numbers nowhere, is unknown: it is listed, never counted as zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Arguments = tuple[Any, ...]
Rule = Callable[[Arguments, Any], int]


# ------------------------------------------------------------------------------------------------------------ products


def _convolution(inputs: Arguments, output: Tensor) -> int:
    """Each output sees C_in / groups x kernel inputs; transposed, each input reaches C_out / groups x kernel."""
    x, weight, transposed = inputs[0], inputs[1], inputs[6]
    pixels = x if transposed else output
    return int(pixels.numel() * math.prod(weight.shape[1:]))


def _product(first: int) -> Rule:
    """A product of matrices of which the left one is input number ``first``: (..., m, k) (..., k, n)."""
    return lambda inputs, output: int(output.numel() * inputs[first].shape[-1])


def _outer(inputs: Arguments, output: Tensor) -> int:
    return int(output.numel())


def _distances(inputs: Arguments, output: Tensor) -> int:
    """Distances of the rows of (..., m, k) and (..., n, k): k squares are summed for each."""
    return int(output.numel() * inputs[0].shape[-1])


def _bilinear(inputs: Arguments, output: Tensor) -> int:
    """x1^T W x2 for (..., i), (o, i, j), (..., j)."""
    x1, x2, weight = inputs[:3]
    return int(x1.shape[:-1].numel() * (weight.numel() + weight.shape[0] * x2.shape[-1]))


def _scores(inputs: Arguments) -> int:
    """The elements of Q K^T; a causal mask does not spare any."""
    q, k = inputs[:2]
    return int(q.shape[:-1].numel() * k.shape[-2])


def _attention(inputs: Arguments, output: Any) -> int:
    """Q K^T and its product with V, for (..., L, E), (..., S, E) and (..., S, E_v)."""
    return _scores(inputs) * int(inputs[0].shape[-1] + inputs[2].shape[-1])


def _rnn_layer(inputs: Arguments, output: Any) -> int:
    """One layer and direction of an LSTM: both weights at every step of every sample."""
    x, to_gates, recurrent = inputs[:3]
    return int(x.shape[:-1].numel() * (to_gates.numel() + recurrent.numel()))


ATTENTIONS = frozenset(
    f"aten::_scaled_dot_product_{name}"
    for name in (
        *("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention"),
        *("fused_attention_overrideable", "attention_math_for_mps"),
    )
)

MACS: dict[str, Rule] = {
    "aten::convolution": _convolution,
    "aten::linear": _product(0),
    "aten::mm": _product(0),
    "aten::bmm": _product(0),
    "aten::mv": _product(0),
    "aten::dot": _product(0),
    "aten::vdot": _product(0),
    "aten::addmm": _product(1),
    "aten::addmm_": _product(1),
    "aten::addmv": _product(1),
    "aten::addbmm": lambda inputs, output: int(inputs[1].numel() * inputs[2].shape[-1]),
    "aten::baddbmm": _product(1),
    "aten::baddbmm_": _product(1),
    "aten::addr": _outer,
    "aten::_addmm_activation": _product(1),
    "aten::_trilinear": _bilinear,
    "aten::_cdist_forward": _distances,
    "aten::_euclidean_dist": _distances,
    "aten::mkldnn_rnn_layer": _rnn_layer,
    **dict.fromkeys(ATTENTIONS, _attention),
}

_FACTORS = {
    **dict.fromkeys(("aten::addmm", "aten::addmm_", "aten::addmv", "aten::addbmm", "aten::_addmm_activation"), (1, 2)),
    **dict.fromkeys(("aten::baddbmm", "aten::baddbmm_", "aten::addr"), (1, 2)),
    **dict.fromkeys(ATTENTIONS, (0, 1, 2)),
}


def factors_of(name: str, inputs: Arguments) -> list[Any]:
    """What a product multiplies: its two factors, or Q, K and V."""
    return [inputs[i] for i in _FACTORS.get(name, (0, 1))]


# --------------------------------------------------------------------------------------------- elementwise operations


def _first(result: Any) -> Tensor:
    tensor: Tensor = result if isinstance(result, Tensor) else result[0]
    return tensor


def _per_output(operations: int) -> Rule:
    return lambda inputs, output: operations * _first(output).numel()


def _per_input(operations: int) -> Rule:
    return lambda inputs, output: operations * _first(inputs).numel()


def _window(dims: int) -> Rule:
    """Pooling over ``dims`` axes: each output adds or compares the numbers under the kernel."""

    def rule(inputs: Arguments, output: Any) -> int:
        sizes = list(inputs[1])
        return int(_first(output).numel() * math.prod(sizes if len(sizes) == dims else sizes * dims))

    return rule


def _sorting(inputs: Arguments, output: Any) -> int:
    """n log2 n comparisons along the axis; without its length at hand, of the last one."""
    x: Tensor = inputs[0]
    return int(x.numel() * math.ceil(math.log2(max(2, x.shape[-1] if x.dim() else 1))))


def _softmax_of_scores(inputs: Arguments, output: Any) -> int:
    """A scale and a softmax over the scores of an attention."""
    return 6 * _scores(inputs)


def _cells(inputs: Arguments, output: Any) -> int:
    """An LSTM's step beside its products, for each of H cells: both sums of 4 gates, 4 sigmoids or tanhs, c and h."""
    hidden = inputs[2].shape[-1]
    return int(inputs[0].shape[:-1].numel() * hidden * (4 + 4 + 3 + 2))


def _named(rule: Rule, names: str) -> dict[str, Rule]:
    return {f"aten::{name}": rule for name in names.split()}


_BATCH_NORMS = frozenset({"aten::native_batch_norm", "aten::batch_norm", "aten::cudnn_batch_norm"})
_KNOWN_STATISTICS = "_native_batch_norm_legit_no_training _batch_norm_no_update"


def _has_statistics(name: str, inputs: Arguments) -> bool:
    """Whether a batch norm takes the mean and variance that it was given, rather than its input's."""
    return name in _BATCH_NORMS and not inputs[5]


def _batch_norm(inputs: Arguments, output: Any) -> int:
    return (7 if inputs[5] else 2) * _first(output).numel()


_NORMS: dict[str, Rule] = {
    # with statistics that are known: a product and a sum
    **_named(_per_output(2), _KNOWN_STATISTICS),
    # mean 1, variance 2, centre and divide 2, gain and shift 2
    **_named(_per_output(7), "_native_batch_norm_legit _batch_norm_with_update native_layer_norm native_group_norm"),
    **dict.fromkeys(_BATCH_NORMS, _batch_norm),
    **_named(_per_output(4), "_fused_rms_norm rms_norm _weight_norm_interface renorm"),
    # maximum, difference, exp, sum, quotient
    **_named(_per_output(5), "_softmax _log_softmax _safe_softmax"),
}
_POOLS: dict[str, Rule] = {
    **_named(_window(1), "avg_pool1d"),
    **_named(_window(2), "avg_pool2d max_pool2d_with_indices"),
    **_named(_window(3), "avg_pool3d max_pool3d_with_indices"),
    **_named(
        _per_input(1),
        "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d",
    ),
}
_REDUCTIONS: dict[str, Rule] = {
    **_named(
        _per_input(1),
        "mean sum nansum prod amax amin aminmax max min argmax argmin any all cumsum cumprod cummax logcumsumexp "
        "bincount count_nonzero",
    ),
    **_named(_per_input(2), "linalg_vector_norm norm logsumexp"),
    **_named(_per_input(3), "var var_mean std std_mean"),
    **_named(_sorting, "sort topk median kthvalue argsort unique_dim _unique2 searchsorted bucketize"),
}
_RESIZES: dict[str, Rule] = {
    **_named(_per_output(3), "upsample_linear1d"),
    **_named(_per_output(7), "upsample_bilinear2d _upsample_bilinear2d_aa grid_sampler_2d"),
    **_named(_per_output(15), "upsample_trilinear3d grid_sampler_3d"),
    **_named(_per_output(31), "upsample_bicubic2d _upsample_bicubic2d_aa"),
}
_ELEMENTWISE: dict[str, Rule] = {
    **_named(
        _per_output(1),
        "hardswish hardswish_ hardtanh hardtanh_ leaky_relu_ elu_ clamp_ clamp_min_ prelu _prelu_kernel glu celu_ "
        "bernoulli_ native_dropout rand rand_like randn randn_like addcmul_ addcdiv_ index_add index_add_ scatter_add "
        "scatter_add_ scatter_reduce col2im rrelu_with_noise hardshrink softshrink logit uniform_ normal_ cross "
        "linalg_cross dist isclose",
    ),
    **_named(
        _per_output(4),
        "fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask "
        "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    ),
    "laconic::fake_quantize": _per_output(4),
    "laconic::fake_quantize_groups": _per_output(4),
}

FLOPS: dict[str, Rule] = {
    **_NORMS,
    **_POOLS,
    **_REDUCTIONS,
    **_RESIZES,
    **_ELEMENTWISE,
    **dict.fromkeys(ATTENTIONS, _softmax_of_scores),
    "aten::mkldnn_rnn_layer": _cells,
    "aten::_addmm_activation": _per_output(1),
}
"""Operations beside the MACs. Operators with torch's tag ``pointwise`` make one per output and need no line here."""

_MOVEMENT = """cat stack clone copy copy_ contiguous _to_copy constant_pad_nd reflection_pad1d reflection_pad2d
reflection_pad3d replication_pad1d replication_pad2d replication_pad3d index index_select index_put index_put_
_unsafe_index index_copy gather scatter scatter_ masked_scatter masked_select masked_fill masked_fill_ where embedding
roll flip repeat repeat_interleave tril tril_ triu triu_ unsafe_split unsafe_split_with_sizes unsafe_chunk
split_with_sizes_copy pixel_shuffle pixel_unshuffle channel_shuffle im2col nonzero take diag_embed slice_scatter
select_scatter max_unpool2d _local_scalar_dense _assert_async upsample_nearest1d upsample_nearest2d upsample_nearest3d
_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d new_zeros new_ones new_full zeros
zeros_like ones ones_like full full_like arange linspace scalar_tensor eye zero_ fill fill_ fill_diagonal_
triu_indices tril_indices randperm randint"""

_UNWRITTEN = """_unsafe_view as_strided_ t_ transpose_ squeeze_ unsqueeze_ detach_ empty empty_like empty_strided
new_empty new_empty_strided lift_fresh"""

MOVES: frozenset[str] = frozenset(f"aten::{name}" for name in _MOVEMENT.split())
"""Operators that move or make numbers and compute nothing."""

UNWRITTEN: frozenset[str] = frozenset(f"aten::{name}" for name in _UNWRITTEN.split())
"""Operators that write no memory although their schema gives a new tensor."""

ONE_OUTPUT: frozenset[str] = frozenset({*_NORMS, *_POOLS, *ATTENTIONS})
"""Operators whose further outputs (indices, statistics) serve the gradient alone."""

OVERWRITES: frozenset[str] = frozenset({"aten::copy_", "aten::fill_", "aten::zero_", "aten::uniform_", "aten::normal_"})
"""Operators that write their first argument without reading it."""

PICKS: frozenset[str] = frozenset(
    {"aten::embedding", "aten::index_select", "aten::gather", "aten::index", "aten::_unsafe_index", "aten::take"}
)
"""Operators that read of their first tensor no more numbers than they give."""


_JOINED = frozenset({*_ELEMENTWISE, *(f"aten::{name}" for name in _KNOWN_STATISTICS.split())})


def is_joined(operator: Any, inputs: Arguments) -> bool:
    """Whether a runtime computes the operator where its input is made: it is elementwise, or scales and shifts."""
    name = operator._schema.name
    if name in _JOINED or _has_statistics(name, inputs):
        return True
    return torch.Tag.pointwise in operator.tags and name not in MOVES | UNWRITTEN | MACS.keys()


def macs_of(operator: Any, inputs: Arguments, output: Any) -> int:
    """The multiply-accumulates of one call; none where the operator is not a product, or not known."""
    rule = MACS.get(operator._schema.name)
    return rule(inputs, output) if rule else 0


def flops_of(operator: Any, inputs: Arguments, output: Any) -> int:
    """The elementwise operations of one call, beside its MACs."""
    name = operator._schema.name
    if name in FLOPS:
        return FLOPS[name](inputs, output)
    if torch.Tag.pointwise in operator.tags and name not in MOVES | UNWRITTEN and isinstance(output, Tensor):
        return output.numel()
    return 0


def is_known(operator: Any) -> bool:
    """Whether it is known what the operator computes."""
    name = operator._schema.name
    named = name in MACS or name in FLOPS or name in MOVES or name in UNWRITTEN
    return named or torch.Tag.pointwise in operator.tags or is_view(operator)


def is_view(operator: Any) -> bool:
    """Whether what the operator gives is memory that its input already had, unchanged."""
    returns = operator._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
