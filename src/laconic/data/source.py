"""What every kind of source gives and takes: a :class:`Request` in, a :class:`Source` of named parts out.

The parts of a source are named in one of three ways:

- ``all``: no official split; the splits are cut from it;
- ``train`` and ``val``: an official split; ``val`` is halved into ``search`` and ``holdout``;
- ``train``, ``search`` and ``holdout``: the caller's own splits, taken as they are.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from laconic.core import Arrays, Batch, JsonObject, Preprocess, Split
from laconic.errors import DataError

if TYPE_CHECKING:
    from laconic.core import Array

    Score = Callable[[Arrays, Array], Array]
    Loss = Callable[[Any, Any], Any]

INPUT = "input"
"""The name of the input of a model that has one."""

EVALUATION = ("val", "valid", "validation", "test")
SPLITS = ("train", "search", "holdout")


@dataclass(frozen=True)
class Request:
    """What the caller asked for; ``score`` and ``loss`` replace the judgement of classes."""

    preprocess: Preprocess | None = None
    trainable: bool = True
    seed: int = 0
    max_corrupt: float = 0.01
    input_shape: tuple[int, ...] | None = None
    score: Score | None = None
    loss: Loss | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise DataError("a seed out of range", got=self.seed, wanted="0 up to 2^32 - 1")
        if not 0 <= self.max_corrupt < 1:
            raise DataError("max_corrupt out of range", got=self.max_corrupt, wanted="a fraction: 0 up to, not with, 1")
        if self.score is not None and self.loss is None and self.trainable:
            raise DataError("training with a score of your own needs a loss", fix="pass loss=, or trainable=False")

    @property
    def classify(self) -> bool:
        """Targets are classes (or absent), not whatever the caller's own score takes."""
        return self.score is None


@dataclass(frozen=True)
class Part:
    """Samples that belong together. ``labels``: the class of each, where known without reading all samples.

    ``keys``: equal for samples of equal content; None where that would mean reading them all. ``content``: a hash of
    all samples and labels, or of what could be read of them in a moment.
    """

    samples: Split
    labels: Array | None
    keys: Sequence[bytes] | None
    content: str


@dataclass(frozen=True)
class Source:
    """A data set that was opened and found good. ``applied``: the pre-processing that ``samples`` already contain."""

    kind: str
    parts: dict[str, Part]
    labelled: bool
    classes: tuple[str, ...] = ()
    applied: Preprocess | None = None
    chance: float | None = None
    notes: JsonObject = field(default_factory=dict)


class Rows:
    """Some rows of a split, in the order given."""

    def __init__(self, base: Split, rows: Array) -> None:
        self._base = base
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: Sequence[int]) -> Batch:
        return self._base.read(self._rows[as_rows(indices)].tolist())

    def name(self, index: int) -> str:
        """What to call a sample: a picture's file, else its row in the data."""
        row = int(self._rows[index])
        return str(self._base.name(row)) if hasattr(self._base, "name") else f"row {row}"


def as_rows(indices: Sequence[int]) -> Array:
    """Indices as an integer array; an empty list has no integer type of its own."""
    return np.asarray(indices, dtype=np.int64)


def content_hash(keys: Iterable[bytes], labels: Array | None, form: str) -> str:
    """A hash of samples in order, their labels and ``form``, which says what one sample is."""
    found = hashlib.blake2b(form.encode(), digest_size=16)
    for key in keys:
        found.update(key)
    if labels is not None:
        found.update(np.ascontiguousarray(labels).tobytes())
    return found.hexdigest()


def refuse_overlap(keys: Mapping[str, Sequence[bytes] | None]) -> None:
    """Refuse parts that share a sample, as far as keys are known."""
    for one, other in itertools.combinations(keys, 2):
        first, second = keys[one], keys[other]
        if first is not None and second is not None and (shared := set(first) & set(second)):
            raise DataError(
                f"splits that are not disjoint: {len(shared)} of the samples looked at are in both {one} and {other}",
                fix="give each sample to one split",
            )


def part_names(given: Sequence[str], where: str) -> dict[str, str]:
    """From the names that people give to parts to the three sets of names above."""
    words = set(given)
    evaluation = [name for name in EVALUATION if name in words]
    if words == set(SPLITS):
        return {name: name for name in SPLITS}
    if words == {"train", *evaluation} and len(evaluation) == 1:
        return {"train": "train", evaluation[0]: "val"}
    if words == {"train", *evaluation} and len(evaluation) == 2 and evaluation[1] == "test":
        return {"train": "train", evaluation[0]: "search", "test": "holdout"}
    raise DataError(
        f"the parts of {where} are not understood",
        got=", ".join(given) or "none",
        wanted="train and val (or valid, validation, test); train, val and test; or train, search and holdout",
    )
