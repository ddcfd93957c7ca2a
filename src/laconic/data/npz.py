"""``FILE.npz``: arrays ready for the model.

Keys: ``x`` and ``y`` for a set without an official split; ``PART_x`` and ``PART_y`` for one with, PART as in
:mod:`laconic.data.python` (``train_x, train_y, val_x, val_y``). ``y`` may be absent, then there are no labels. A model
of several inputs has ``x.NAME`` in place of ``x``. Any other key is refused: it may be a scale or an offset that the
arrays still need. Pickled arrays are not opened.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from laconic.data.arrays import array_source
from laconic.data.source import Request, Source, part_names
from laconic.errors import DataError

if TYPE_CHECKING:
    from laconic.core import Array

_KEY = re.compile(r"(?:(?P<part>[a-z]+)_)?(?:(?P<y>y)|x(?:\.(?P<name>.+))?)")


def matches(spec: str) -> bool:
    return Path(spec).suffix == ".npz"


def open_source(spec: str, request: Request) -> Source:
    arrays = _read(spec)
    found: dict[str, tuple[dict[str, Array], list[Array]]] = {}
    for key, array in arrays.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise DataError(f"an unknown key in {spec}", got=repr(key), wanted="x and y, or PART_x and PART_y")
        inputs, targets = found.setdefault(match["part"] or "all", ({}, []))
        if match["y"]:
            targets.append(array)
        else:
            inputs[match["name"] or "input"] = array
    names = {"all": "all"} if list(found) == ["all"] else part_names(list(found), spec)
    given: Mapping[str, tuple[Any, Any]] = {
        names[part]: (inputs, targets[0] if targets else None) for part, (inputs, targets) in found.items()
    }
    return array_source("npz", given, request)


def _read(spec: str) -> dict[str, Array]:
    try:
        with Path(spec).open("rb") as file:  # numpy leaves a file of its own open when it cannot read it
            found = np.load(file, allow_pickle=False)
            if not isinstance(found, np.lib.npyio.NpzFile):
                raise DataError(f"{spec} is not an .npz file", got="one array", fix="write it with numpy.savez")
            return {key: found[key] for key in found.files}
    except (ValueError, zipfile.BadZipFile, EOFError, OSError) as fault:
        if "pickle" in str(fault).lower() or "object arrays" in str(fault).lower():
            raise pickled(spec) from fault
        raise DataError(f"{spec} cannot be read", got=fault, wanted="a file of numpy.savez") from fault


def pickled(spec: str) -> DataError:
    """A pickle runs code of whoever wrote it, so it is not opened."""
    return DataError(
        f"{spec} holds a pickle, which can run any code and is not opened",
        wanted="plain arrays",
        fix="where you trust it, convert it: numpy.savez('data.npz', x=x.astype('float32'), y=y.astype('int64'))",
    )
