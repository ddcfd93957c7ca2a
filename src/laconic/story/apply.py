"""A finished package at work: labels for pictures, and its file written for another target."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from laconic.core import Array, Arrays, JsonObject, Target
from laconic.data import apply as preprocessed
from laconic.errors import DataError, DeployError, FolderError, MissingExtraError, TargetError
from laconic.pack.package import Package
from laconic.runtime import Runtime, Translating, runtime_of
from laconic.runtime.difference import relative_error
from laconic.story.inputs import made_up

_COMPARED = 8
_ROUNDING = 2e-2
"""Two runtimes round the same integers differently; more than this is another answer."""


def predictions(package: Package, inputs: Sequence[Path], top: int) -> Iterator[JsonObject]:
    """Per input its name and its ``top`` labels with scores (softmax of the output); read and run one by one."""
    if top < 1:
        raise DataError("--top is too small", got=top, wanted="at least 1")
    for path in inputs:  # nothing is run before every input is known to be there
        if not path.is_file():
            raise DataError("no such input", got=str(path), wanted="a picture or a .npy file")
    if len(package.manifest["inputs"]) > 1:
        raise DataError("run gives a model one input only", got=", ".join(package.manifest["inputs"]))
    session = runtime_of(package.target).open_file(package.model_path, package.target)
    for path in inputs:
        batch = _array(package, path)
        output = next(iter(session({"input": batch}).values()))
        if output.ndim != 2:
            raise DataError("outputs that are not classes", got=f"shape {output.shape}", wanted="(n, classes)")
        for i, logits in enumerate(output.astype(np.float64)):
            name = str(path) if len(output) == 1 else f"{path}[{i}]"
            yield {"input": name, "labels": _labels(package, logits, top)}


def _array(package: Package, path: Path) -> Any:
    """A batch ready for the model: from a picture, or from an array of one sample or several."""
    if path.suffix == ".npy":
        return _numbers(package, path)
    stated = package.preprocess
    if stated is None:
        raise DataError(
            "this package does not say how pictures are prepared", fix="give .npy arrays ready for the model"
        )
    try:
        with Image.open(path) as picture:
            return preprocessed(picture, stated)[None]
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not a picture that can be read: {error}") from error


def _numbers(package: Package, path: Path) -> Any:
    try:
        x = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:  # numpy takes what it does not know for a pickle
        raise DataError(f"{path} is no .npy file of numbers", fix="write it with numpy.save; no pickles") from error
    shape, dtype = package.manifest["input_shape"], next(iter(package.manifest["inputs"].values()))["dtype"]
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "buif" or not np.isfinite(x).all():
        raise DataError(f"{path} is not an array of finite numbers", wanted=f"{dtype}")
    if list(x.shape) == shape:
        x = x[None]
    if list(x.shape[1:]) != shape or not len(x):
        raise DataError(f"{path} does not fit the model", got=x.shape, wanted=f"{tuple(shape)}, or several of them")
    return x.astype(dtype)


def _labels(package: Package, logits: Any, top: int) -> list[JsonObject]:
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    names = package.labels
    best = np.argsort(-shares, kind="stable")[:top]
    return [{"label": names[c] if c < len(names) else str(c), "class": int(c), "score": float(shares[c])} for c in best]


def exported(package: Package, target: Target, out: Path) -> JsonObject:
    """Write the package's file for ``target`` after a comparison there; nothing is written if it does not agree.

    For a runtime that may be absent where its files are made the file is translated, and compared as far as it can be
    here: ``note`` says how.
    """
    there, here = runtime_of(target), runtime_of(package.target)
    if there.SUFFIX != here.SUFFIX:
        command = f"laconic shrink MODEL --data DATA --recipe {package.folder}/recipe.yaml --budget 0 --target {target}"
        raise TargetError(
            f"{target.runtime} does not read {here.SUFFIX} files", got=package.model_path.name,
            wanted=f"a {there.SUFFIX} file", fix=f"deploy the recipe there: {command}",
        )  # fmt: skip
    if out.is_dir():
        raise FolderError("--out is a folder", got=str(out), wanted="the file to write")
    x = made_up(package.manifest["inputs"], _COMPARED)
    wanted = here.open_file(package.model_path, package.target)(x)
    integer = any(name.startswith("Quantize") for name in package.manifest["best"]["operators"])
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / package.model_path.name
        found, note = _written(package, there, target, made, x)
        difference = max(relative_error(found[name], y) for name, y in wanted.items())
        if difference > (_ROUNDING * 10 if integer else _ROUNDING):
            raise TargetError(f"on {target} the file gives another answer", got=f"relative error {difference:.2g}")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=out.parent) as folder:
                part = Path(folder) / out.name
                shutil.copyfile(made, part)
                part.replace(out)
        except OSError as error:
            raise FolderError(f"{out} cannot be written: {error}", fix="give another --out") from error
    return {
        "file": str(out),
        "bytes": out.stat().st_size,
        "target": str(target),
        "certified_on": str(package.target),
        "difference": difference,
        "note": note,
    }


def _written(
    package: Package, there: Runtime, target: Target, part: Path, x: Arrays
) -> tuple[dict[str, Array], str | None]:
    """Write the file for ``target``; its outputs for ``x``, and how they came about if not on the target."""
    try:
        if not isinstance(there, Translating):
            shutil.copyfile(package.model_path, part)
            return there.open_file(part, target)(x), None
        there.translate(package.model_path, part)
        try:
            return there.open_file(part, target)(x), None
        except MissingExtraError:
            return there.simulate(part, target)(x), there.SIMULATED
    except DeployError as error:
        raise TargetError(str(error), fix="give another --target") from error
