"""The one place where an eager model is exported: to a torch.export program, and from there to an ONNX graph."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnxscript import opset20 as op
from torch import Tensor, nn

from laconic import surgery
from laconic.errors import DeployError
from laconic.fake_quantize import PER_TENSOR

OPSET = 20
_LARGEST_BATCH = 4096


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
    with _exporting("export the model"), torch.no_grad():
        outputs = list(surgery.call(model, example))
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes), outputs


def onnx_of(program: torch.export.ExportedProgram, inputs: list[str], outputs: list[str]) -> ir.Model:
    """The program as an ONNX graph; ``laconic::fake_quantize`` becomes QuantizeLinear -> DequantizeLinear."""
    with _exporting("write the model as ONNX"), torch.no_grad():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            custom_translation_table={torch.ops.laconic.fake_quantize.default: _fake_quantize},
            verbose=False,
        )
        assert exported is not None
        return exported.model


def _fake_quantize(x: Any, scale: Any, zero_point: Any, qmin: int, qmax: int, axis: int) -> Any:
    zero: Any = op.Cast(zero_point, to=onnx.TensorProto.UINT8 if qmin >= 0 else onnx.TensorProto.INT8)
    if axis == PER_TENSOR:
        return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero), scale, zero)
    return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero, axis=axis), scale, zero, axis=axis)


@contextlib.contextmanager
def _exporting(what: str) -> Iterator[None]:
    """Quiet (the exporter speaks through print, logging and warnings; what fails is raised all the same)."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # torch raises many kinds here; each is one candidate that cannot be exported
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
        raise DeployError(f"torch cannot {what}: {reason}") from error
    finally:
        logger.setLevel(level)
