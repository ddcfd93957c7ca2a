"""The one place where an eager model is exported: to a torch.export program, and from there to an ONNX graph."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxscript
import torch
import torch.nn.functional as F
from onnxscript import opset20 as op
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

import laconic
from laconic import surgery
from laconic.errors import DeployError
from laconic.fake_quantize import PER_TENSOR, weight_quantizer
from laconic.runtime import onnx_blocks, onnx_codebook

OPSET = 20
_LARGEST_BATCH = 4096
_ATTENTION_DIMS = 4
_NOT_THE_MODELS = tuple(
    str(Path(module.__file__ or "").parent) + os.sep for module in (torch, onnx, ir, onnxscript, laconic)
)


def program_of(model: nn.Module, example: Mapping[str, Tensor]) -> tuple[torch.export.ExportedProgram, list[str]]:
    """The model as a program with a free batch size (axis 0), and the names of its outputs.

    ``example`` has at least two samples: torch takes a batch of one for a constant. Raises :class:`DeployError` where
    torch cannot export the model.
    """
    model = model.eval()
    args = tuple(example.values()) if len(example) == 1 else ()
    kwargs = {} if args else dict(example)
    free = {0: torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)}
    shapes: Any = (free,) if args else dict.fromkeys(kwargs, free)
    with torch_quiet("export the model"), torch.no_grad(), _FlatAttention():
        outputs = list(surgery.call(model, example))
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes), outputs


class _FlatAttention(TorchFunctionMode):
    """While this is on, attention sees (batch, heads, tokens, width), which is all that ONNX's exporter knows: windows
    in a dimension of their own, as in timm's Twins and NesT, become more of the batch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = _attention if func is F.scaled_dot_product_attention else func
        return found(*args, **(kwargs or {}))


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **by: Any
) -> Any:
    leading = query.shape[:-2]
    if len(leading) + 2 == _ATTENTION_DIMS:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, *rest, **by)
    mask = attn_mask if attn_mask is None else _flat(attn_mask.expand(*leading, *attn_mask.shape[-2:]))
    found = F.scaled_dot_product_attention(_flat(query), _flat(key), _flat(value), mask, *rest, **by)
    return found.reshape(*leading, *found.shape[-2:])


def _flat(x: Tensor) -> Tensor:
    return x.unsqueeze(1) if x.dim() < _ATTENTION_DIMS else x.flatten(0, -_ATTENTION_DIMS)


class _Frozen(nn.ModuleList):
    """Stands in for the parametrizations of a layer's weight: what they gave, behind its quantizer if it has one."""

    def __init__(self, layer: surgery.Layer, hide: bool) -> None:
        quantizer = weight_quantizer(layer)
        super().__init__([] if quantizer is None else [quantizer])
        self.original = nn.Parameter(layer.weight.detach(), requires_grad=False)
        # over how many numbers a hash spreads the weight (laconic.hashing), as a parametrization says
        self.hashed = max(getattr(link, "hashed", 0) for link in layer.parametrizations["weight"])  # type: ignore[index]
        self.hide = hide

    def forward(self) -> Tensor:
        for quantizer in self:
            return quantizer(self.original)  # type: ignore[no-any-return]
        if self.hide and torch.compiler.is_exporting():
            return onnx_codebook.hidden(self.original, self.hashed)
        return self.original


@contextlib.contextmanager
def frozen_weights(model: nn.Module, hide: bool = False) -> Iterator[None]:
    """While this lasts, parametrized weights are plain numbers, in whichever way they came about; with ``hide`` they
    are in placeholders (:mod:`.onnx_codebook`). Quantized weights keep their quantizer and hold what their codes stand
    for: whoever rounds them again finds the same codes, also those that training has pushed beyond the last level."""
    layers = [x for x in surgery.weighted_layers(model).values() if parametrize.is_parametrized(x, "weight")]
    kept: list[Any] = [layer.parametrizations["weight"] for layer in layers]  # type: ignore[index]
    try:
        for layer in layers:
            layer.parametrizations["weight"] = _Frozen(layer, hide)  # type: ignore[index, operator, assignment]
        yield
    finally:
        for layer, chain in zip(layers, kept, strict=True):
            layer.parametrizations["weight"] = chain  # type: ignore[index, operator]


def onnx_of(program: torch.export.ExportedProgram, inputs: list[str], outputs: list[str]) -> ir.Model:
    """The program as an ONNX graph; ``laconic::fake_quantize`` becomes QuantizeLinear -> DequantizeLinear."""
    with torch_quiet("write the model as ONNX"), torch.no_grad():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            custom_translation_table={
                torch.ops.laconic.fake_quantize.default: _fake_quantize,
                torch.ops.laconic.fake_quantize_groups.default: onnx_blocks.exported,
            },
            verbose=False,
        )
        assert exported is not None
        return exported.model


def _fake_quantize(x: Any, scale: Any, zero_point: Any, qmin: int, qmax: int, axis: int) -> Any:
    kind = onnx.TensorProto.UINT8 if qmin >= 0 else onnx.TensorProto.INT8
    zero: Any = op.Cast(zero_point, to=kind)
    along: Any = {} if axis == PER_TENSOR else {"axis": axis}
    codes: Any = op.QuantizeLinear(x, scale, zero, **along)
    if kind == onnx.TensorProto.UINT8 and qmax < np.iinfo(np.uint8).max:  # of fewer bits than QuantizeLinear clips to
        ends: Any = [op.Constant(value=onnx.helper.make_tensor("", kind, [], [end])) for end in (qmin, qmax)]
        codes = op.Clip(codes, *ends)
    return op.DequantizeLinear(codes, scale, zero, **along)


@contextlib.contextmanager
def torch_quiet(what: str) -> Iterator[None]:
    """While torch does ``what``: it is quiet (it speaks through print, logging and warnings), and whatever fails is
    raised as one :class:`DeployError`."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        heard = io.StringIO()
        with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # torch raises many kinds here; each is one candidate that cannot be exported
        raise DeployError(f"torch cannot {what}: {_reason(error)}{_place(error)}") from error
    finally:
        logging.disable(disabled)


def _place(error: BaseException) -> str:
    """Where in the model's own code an error began, or nothing."""
    found = ""
    while error.__cause__ is not None:
        error = error.__cause__
    for frame in traceback.extract_tb(error.__traceback__):
        if not any(part in frame.filename for part in _NOT_THE_MODELS):
            found = f" ({Path(frame.filename).name}:{frame.lineno}: {frame.line})"
    return found


def _reason(error: BaseException) -> str:
    """Kind and first line of what it began with: torch wraps an error in several that say less."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
