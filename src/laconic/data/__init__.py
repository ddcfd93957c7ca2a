"""Where a Task comes from: one kind of source per file, listed in :data:`KINDS`.

A kind is two functions: ``matches(spec)`` and ``open_source(spec, request) -> Source``. The first kind that matches
opens the data; :mod:`laconic.data.splits` says how samples are split, :mod:`laconic.data.metrics` how they are judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from laconic.core import Preprocess, Task
from laconic.data import digits, folder, idx, npz, parquet, python
from laconic.data.image import apply, read_yaml, to_yaml
from laconic.data.loaders import is_loader
from laconic.data.metrics import agreement, top1, with_reference
from laconic.data.source import Request, Source, part_names
from laconic.data.task import make_task
from laconic.errors import DataError

if TYPE_CHECKING:
    from laconic.data.source import Loss, Score

__all__ = [
    "KINDS",
    "agreement",
    "apply",
    "from_arrays",
    "from_loaders",
    "from_splits",
    "load",
    "read_yaml",
    "to_yaml",
    "top1",
    "with_reference",
]


class Kind(NamedTuple):
    """One kind of source."""

    matches: Callable[[str], bool]
    open_source: Callable[[str, Request], Source]


KINDS: Mapping[str, Kind] = {
    "digits": Kind(digits.matches, digits.open_source),
    "python file": Kind(python.matches, python.open_source),
    "parquet": Kind(parquet.matches, parquet.open_source),
    "npz": Kind(npz.matches, npz.open_source),
    "idx": Kind(idx.matches, idx.open_source),
    "image folder": Kind(folder.matches, folder.open_source),
}

_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib")
_FORMS = "digits, an image folder, FILE.parquet, a folder of idx files, FILE.npz or FILE.py:FACTORY"


def load(
    spec: str,
    *,
    preprocess: Preprocess | None,
    trainable: bool = True,
    seed: int = 0,
    max_corrupt: float = 0.01,
    input_shape: tuple[int, ...] | None = None,
) -> Task:
    """The task that ``spec`` names.

    ``preprocess`` is applied to pictures; to arrays that are ready for the model it is not, there it is kept in the
    task for later use on pictures. ``trainable=False`` gives train only the samples for calibration. ``max_corrupt``:
    the share of pictures that may be left out as unusable. ``input_shape``: the model's, without the batch.
    """
    request = Request(preprocess, trainable, seed, max_corrupt, input_shape)
    return make_task(spec, _find(spec).open_source(spec, request), request)


def from_arrays(
    x: Any,
    y: Any = None,
    *,
    trainable: bool = True,
    seed: int = 0,
    preprocess: Preprocess | None = None,
    score: Score | None = None,
    loss: Loss | None = None,
) -> Task:
    """A task from arrays ready for the model, split as :mod:`laconic.data.splits` says; ``x`` may be a mapping.

    ``score(outputs, targets) -> (n,)`` in 0..1, higher is better, replaces the judgement of classes; with it ``y`` is
    whatever the score takes, and training needs ``loss(outputs, targets)`` on torch tensors.
    """
    return _from_value((x, y), Request(preprocess, trainable, seed, score=score, loss=loss), "arrays")


def from_splits(
    splits: Mapping[str, Any],
    *,
    trainable: bool = True,
    seed: int = 0,
    preprocess: Preprocess | None = None,
    score: Score | None = None,
    loss: Loss | None = None,
) -> Task:
    """A task from ``{"train": ..., "val": ...}`` or ``{"train": ..., "search": ..., "holdout": ...}``.

    Each is ``(x, y)``, ``x`` or a torch DataLoader; the rest is as in :func:`from_arrays`.
    """
    part_names(list(splits), "splits")
    return _from_value(splits, Request(preprocess, trainable, seed, score=score, loss=loss), "splits")


def from_loaders(
    *loaders: Any,
    trainable: bool = True,
    seed: int = 0,
    preprocess: Preprocess | None = None,
    score: Score | None = None,
    loss: Loss | None = None,
) -> Task:
    """A task from plain torch DataLoaders: one for all, train and val, or train, search and holdout."""
    if not loaders or not all(map(is_loader, loaders)):
        raise DataError(
            "from_loaders takes torch DataLoaders", got=", ".join(type(x).__name__ for x in loaders) or "none"
        )
    return _from_value(loaders, Request(preprocess, trainable, seed, score=score, loss=loss), "loaders")


def _from_value(value: Any, request: Request, name: str) -> Task:
    return make_task(name, python.value_source(value, request, name), request)


def _find(spec: str) -> Kind:
    if spec != "digits" and not python.matches(spec) and not (spec and Path(spec).exists()):
        raise DataError("no such data", got=repr(spec), wanted=_FORMS)
    if Path(spec).suffix in _PICKLES:
        raise npz.pickled(spec)
    for kind in KINDS.values():
        if kind.matches(spec):
            return kind
    raise DataError("data of an unknown kind", got=repr(spec), wanted=_FORMS)
