"""``FILE.py:FACTORY``, and the same values given from Python.

A factory takes no arguments and returns one of these (arrays are numpy or torch, ready for the model):

- ``(x, y)``, or ``x`` alone without labels; ``x`` is an array or a mapping of input names to arrays;
- a mapping of parts to any of the above: ``train`` and ``val`` (or ``valid, validation, test``), ``train, val, test``,
  or ``train, search, holdout``;
- a torch DataLoader, a tuple of two (train, val) or three (train, search, holdout), or a mapping of parts to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from laconic.data.arrays import array_source
from laconic.data.loaders import is_loader, loader_source
from laconic.data.source import EVALUATION, SPLITS, Request, Source, part_names
from laconic.errors import DataError
from laconic.factory import load_factory


def matches(spec: str) -> bool:
    return spec.rpartition(":")[0].endswith(".py")


def open_source(spec: str, request: Request) -> Source:
    return replace(value_source(load_factory(spec, DataError), request, f"what {spec} returns"), kind="python file")


def value_source(value: Any, request: Request, where: str) -> Source:
    """A source from a value of one of the forms above; ``where`` says whose value it is."""
    parts = _by_part(value, where)
    loaders = [name for name, part in parts.items() if is_loader(part)]
    if loaders and len(loaders) < len(parts):
        raise DataError(
            f"{where} mixes DataLoaders and arrays", got=f"loaders in {', '.join(loaders)}", wanted="one kind"
        )
    if loaders:
        return loader_source(parts, request)
    return array_source("arrays", {name: _pair(part, name) for name, part in parts.items()}, request)


def _by_part(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, Mapping) and set(value) & {*SPLITS, *EVALUATION}:
        names = part_names([str(name) for name in value], where)
        return {names[name]: part for name, part in value.items()}
    if isinstance(value, (tuple, list)) and value and all(map(is_loader, value)):
        if len(value) > 3:
            raise DataError(f"too many DataLoaders in {where}", got=len(value), wanted="train, search and holdout")
        return dict(zip({1: ("all",), 2: ("train", "val"), 3: SPLITS}[len(value)], value, strict=True))
    return {"all": value}


def _pair(value: Any, name: str) -> tuple[Any, Any]:
    if isinstance(value, tuple):
        if len(value) != 2:
            raise DataError(f"a tuple in {name} that is not (x, y)", got=f"{len(value)} values", wanted="(x, y), or x")
        return value[0], value[1]
    return value, None
