"""A folder of pictures: ``DIR/class/*.jpg``, with an official split ``DIR/train/class`` and ``DIR/val/class``.

``valid``, ``validation`` and ``test`` are read as ``val``; with train, val *and* test, val is search and test is
holdout. Classes are numbered in the order of their sorted names, as torchvision's ImageFolder does (so ``10`` comes
before ``2``), over the classes of train; pictures in folders inside a class belong to it. Pictures directly in the
folder, or in each part, are unlabelled. Hidden files and files that are no pictures are passed over.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from laconic.data.pictures import Encoded, open_pictures, required
from laconic.data.source import EVALUATION, Request, Source, part_names
from laconic.errors import DataError

ENDINGS = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))


def matches(spec: str) -> bool:
    return Path(spec).is_dir()


def open_source(spec: str, request: Request) -> Source:
    required(request)
    root = Path(spec)
    found = {part: _listed(folder) for part, folder in _parts(root).items()}
    labelled = {"" not in classes for classes in found.values()}
    if len(labelled) > 1:
        raise DataError(f"class folders in some parts of {spec} only", fix="sort all pictures into classes, or none")
    classes = next(iter(found.values()))
    for part, others in found.items():
        unknown = sorted(set(others) - set(classes))
        if unknown:
            raise DataError(f"classes of {spec}/{part} that train lacks", got=", ".join(unknown[:5]))
    numbers = {name: number for number, name in enumerate(sorted(classes))}
    rows = [(path, part, numbers[name]) for part in found for name in sorted(found[part]) for path in found[part][name]]
    encoded = Encoded(
        names=[path.relative_to(root).as_posix() for path, _, _ in rows],
        contents=[path for path, _, _ in rows],
        parts=np.array([part for _, part, _ in rows]),
        labels=np.array([number for _, _, number in rows], np.int64) if labelled == {True} else None,
        classes=tuple(numbers) if labelled == {True} else (),
    )
    return open_pictures("image folder", encoded, request)


def _parts(root: Path) -> dict[str, Path]:
    """The folder of each part."""
    there = [path.name for path in _visible(root) if path.is_dir()]
    evaluation = [name for name in there if name in EVALUATION]
    if "train" not in there:
        if evaluation and len(evaluation) == len(there):
            raise DataError(f"{root} has no train", got=", ".join(there), fix=f"or name {root / evaluation[0]} itself")
        return {"all": root}
    if len(there) == 1:
        raise DataError(f"{root} has only train", wanted="train and val", fix=f"or name {root / 'train'} itself")
    return {part: root / name for name, part in part_names(there, str(root)).items()}


def _listed(folder: Path) -> dict[str, list[Path]]:
    """The pictures of each class; of the class "" where there are no class folders."""
    entries = _visible(folder)
    direct = [path for path in entries if path.is_file() and path.suffix.lower() in ENDINGS]
    classes = {path.name: _pictures(path) for path in entries if path.is_dir()}
    if direct and classes:
        got = f"{direct[0].name} beside the folder {next(iter(classes))}"
        raise DataError(f"pictures and class folders in {folder}", got=got, fix="put every picture into a class folder")
    if direct:
        return {"": direct}
    empty = [name for name, pictures in classes.items() if not pictures]
    if not classes or len(empty) == len(classes):
        raise DataError(f"no pictures in {folder}", wanted=f"files ending in {', '.join(sorted(ENDINGS))}")
    if empty:
        raise DataError(f"classes without pictures in {folder}", got=", ".join(empty[:5]), fix="remove those folders")
    return classes


def _pictures(folder: Path) -> list[Path]:
    """All pictures below, in a stable order; links are followed, as torchvision does."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        found += [Path(place, name) for name in files if name[0] != "." and Path(name).suffix.lower() in ENDINGS]
    return sorted(found)


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
