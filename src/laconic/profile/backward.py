"""What the gradient of each operator costs: its products, and what it keeps of the way forward.

A product Y = X W has two gradients, dL/dX = dL/dY W^T and dL/dW = X^T dL/dY, each as many MACs as the product itself;
one with respect to something that no parameter stands behind (the model's input) is not made. A fused attention keeps
no scores: it computes Q K^T again, five products for two (Dao et al. 2022, arXiv 2205.14135, algorithm 4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from laconic.profile.operators import ATTENTIONS, MACS, Arguments, factors_of

Trains = Callable[[Any], bool]

_OUTPUT = """relu relu_ sigmoid sigmoid_ tanh tanh_ exp sqrt rsqrt reciprocal _softmax _log_softmax _safe_softmax
softmax threshold threshold_ elu_ amax amin"""
_INPUT = """gelu gelu_ silu silu_ hardswish hardswish_ hardtanh hardtanh_ hardsigmoid hardsigmoid_ leaky_relu
leaky_relu_ elu mish mish_ softplus clamp clamp_ clamp_min clamp_min_ clamp_max pow log log2 log1p sin cos erf abs glu
prelu _prelu_kernel log_sigmoid_forward"""
_INPUT_AND_REST = """native_layer_norm native_group_norm native_batch_norm _native_batch_norm_legit
_native_batch_norm_legit_no_training _batch_norm_no_update cudnn_batch_norm max_pool2d_with_indices
max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d _fused_rms_norm"""
_INDICES = "embedding index index_select gather"
_CROSSED = frozenset({"aten::mul", "aten::mul_", "aten::div", "aten::div_", "aten::atan2"})

Kept = Callable[[list[Tensor], list[Tensor]], list[Tensor]]
"""What a call keeps of its inputs and outputs."""

_KEEPS: dict[str, Kept] = {
    **{f"aten::{name}": lambda given, made: made[:1] for name in _OUTPUT.split()},
    **{f"aten::{name}": lambda given, made: given for name in _INPUT.split()},
    **{f"aten::{name}": lambda given, made: given + made[1:] for name in _INPUT_AND_REST.split()},
    **{f"aten::{name}": lambda given, made: given[1:] for name in _INDICES.split()},
    **dict.fromkeys(ATTENTIONS, lambda given, made: given[:3] + [y for y in made if y.is_floating_point()]),
}

PASSES = frozenset(f"aten::{name}" for name in ("add", "add_", "sub", "sub_", "rsub", "_to_copy", "neg"))
"""Operators whose gradient is the output's, as it is: it moves no memory."""


def macs_of(name: str, macs: int, inputs: Arguments, trains: Trains) -> int:
    """The multiply-accumulates of a call's gradients."""
    if name not in MACS or not macs:
        return 0
    trained = sum(map(trains, factors_of(name, inputs)))
    return macs * trained if name not in ATTENTIONS else 5 * macs // 2 if trained else 0


def kept_by(name: str, inputs: Arguments, result: Any, trains: Trains) -> list[Tensor]:
    """The tensors that a call keeps for its gradients, weights among them; none if it has none."""
    outputs = [result] if isinstance(result, Tensor) else [y for y in result if isinstance(y, Tensor)]
    given = [x for x in inputs if isinstance(x, Tensor)]
    if not any(trains(x) for x in given):
        return []
    if name in _KEEPS:
        return _KEEPS[name](given, outputs)
    if name in MACS or name in _CROSSED:
        one, other = factors_of(name, inputs)
        return [x for x, partner in ((one, other), (other, one)) if isinstance(x, Tensor) and trains(partner)]
    return []
