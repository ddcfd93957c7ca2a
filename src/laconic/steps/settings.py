"""A step's settings are checked when it is built, whoever wrote them: their types here, their ranges in the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from laconic.errors import RecipeError

_WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}


def check_types(step: Any) -> None:
    """Refuse settings that are not of their field's type, and numbers that are not finite.

    A whole number where a float is wanted becomes one, and a list a tuple: equal recipes have equal keys.
    """
    hints = get_type_hints(type(step))
    for setting in fields(step):
        value, kind = getattr(step, setting.name), hints[setting.name]
        try:
            object.__setattr__(step, setting.name, _fitted(value, kind))
        except TypeError:
            name = f"{setting.name} of {type(step).__name__}"
            raise RecipeError(name, got=repr(value), wanted=_described(kind)) from None


def _fitted(value: Any, kind: Any) -> Any:
    """``value`` as ``kind`` keeps it; raises :class:`TypeError` where it is something else."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is float and isinstance(value, (int, float)) and type(value) is not bool and math.isfinite(value):
        return float(value)
    if kind in (int, bool, str) and type(value) is kind:
        return value
    if origin is Literal and value in inner:
        return value
    if origin is tuple and isinstance(value, (tuple, list)):
        return tuple(_fitted(item, inner[0]) for item in value)
    if origin is Mapping and isinstance(value, Mapping):
        return {_fitted(name, inner[0]): _fitted(item, inner[1]) for name, item in value.items()}
    raise TypeError


def _described(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin is tuple:
        return f"a list, each {_described(inner[0])}"
    if origin is Mapping:
        return f"a mapping, from {_described(inner[0])} to {_described(inner[1])}"
    return _WORDS[kind]
