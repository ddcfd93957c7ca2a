"""The table of ONNX operators: name -> function of the node and of its inputs.

An operator's file states it in one plain torch call where there is one. What is not in the table, or raises
:class:`UnsupportedError`, is run by ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from laconic.models.onnx_import.operators import elementwise, numbers, pooling, reductions, shapes
from laconic.models.onnx_import.operators.errors import UnsupportedError
from laconic.models.onnx_import.operators.numbers import NUMBERS

__all__ = ["NUMBERS", "OPERATORS", "PLAIN", "PLAIN_SCALARS", "UnsupportedError"]

OPERATORS: dict[str, Callable[..., Any]] = {
    **elementwise.OPERATORS,
    **pooling.OPERATORS,
    **reductions.OPERATORS,
    **shapes.OPERATORS,
    **numbers.SIZES,
}

PLAIN: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "OneHot": (1,),
    "Pad": (1, 2, 3),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
    **dict.fromkeys((name for name in reductions.OPERATORS if name.startswith("Reduce")), (1,)),
}
"""The inputs that, where they are constant or sizes, are handed over as Python numbers and lists."""

PLAIN_SCALARS: dict[str, tuple[int, ...]] = {"Clip": (1, 2), "CumSum": (1,), "Gather": (1,), "Trilu": (1,)}
"""The same, but only where the constant is a single number."""
