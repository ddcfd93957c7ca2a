"""Three disjoint splits from the parts of a source, as a pure function of labels, keys and seed.

- ``all``, trainable: train 1/2, search 1/6, holdout the rest (1/3). Not trainable: train is calibration alone, 128
  samples or a tenth of them; search is max(300, n/5), at most a third and at most 5,000; holdout the rest.
- ``train`` and ``val``: train as it is, val halved into search and holdout. Not trainable: train shrinks to 128 samples
  and the rest of it stays unused, since the model was trained on it. Samples of train that also occur in val are left
  out of train.
- ``train``, ``search``, ``holdout``: as they are; a sample in two of them is refused.

Each split cut from a part holds each class's share of it, to within one sample, and samples of equal content go to the
same split. Train is in that even order too, so that its beginning is a balanced calibration set; search and holdout
are shuffled. The order of samples inside a split is laconic's own in all three cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from laconic.core import JsonObject
from laconic.data.source import SPLITS, Part, refuse_overlap
from laconic.errors import DataError

if TYPE_CHECKING:
    from laconic.core import Array

CALIBRATION = 128

_RULES = {
    ("all", True): "cut from one set: train 1/2, search 1/6, holdout 1/3",
    ("all", False): "cut from one set: calibration, search, holdout the rest",
    ("val", True): "official train; the official evaluation part halved into search and holdout",
    (
        "val",
        False,
    ): "calibration from the official train, the rest of which is unused, since the model was trained on it;"
    " the official evaluation part halved into search and holdout",
    ("holdout", True): "given",
    ("holdout", False): "given; train shrunk to calibration",
}


@dataclass(frozen=True)
class Plan:
    """For each split the part it is from and the rows of it, in order; and how they were chosen."""

    chosen: dict[str, tuple[str, Array]]
    notes: JsonObject


def plan(parts: Mapping[str, Part], trainable: bool, seed: int) -> Plan:
    """The splits of a source."""
    form = next(name for name in ("all", "val", "holdout") if name in parts)
    notes: JsonObject = {"rule": _RULES[form, trainable]}
    # RandomState, unlike Generator, is promised to give the same numbers in every version of numpy
    random = np.random.RandomState(seed)
    if form == "all":
        train, search, holdout = divide(parts["all"], sizes(len(parts["all"].samples), trainable), random)
        chosen = {"train": ("all", train), "search": ("all", search), "holdout": ("all", holdout)}
    elif form == "val":
        train = divide(parts["train"], [len(parts["train"].samples)], random)[0]
        train, notes["left_out_of_train"] = _without(train, parts["train"], parts["val"])
        n = len(parts["val"].samples)
        search, holdout = divide(parts["val"], [n // 2, n - n // 2], random)
        chosen = {"train": ("train", train), "search": ("val", search), "holdout": ("val", holdout)}
    else:
        refuse_overlap({name: part.keys for name, part in parts.items()})
        chosen = {name: (name, divide(parts[name], [len(parts[name].samples)], random)[0]) for name in SPLITS}
    if not trainable:
        chosen["train"] = (chosen["train"][0], chosen["train"][1][:CALIBRATION])
    for name in ("search", "holdout"):
        chosen[name] = (chosen[name][0], random.permutation(chosen[name][1]))
    for name, (_, rows) in chosen.items():
        if not len(rows):
            got = ", ".join(f"{len(part.samples)} in {key}" for key, part in parts.items())
            raise DataError(f"too few different samples: none left for {name}", got=got, fix="add samples")
    return Plan(chosen, notes)


def sizes(n: int, trainable: bool) -> list[int]:
    """Train, search and holdout of ``n`` samples without an official split.

    >>> sizes(1300, trainable=False), sizes(1797, trainable=True)
    ([128, 300, 872], [898, 299, 600])
    """
    if trainable:
        train, search = n // 2, n // 6
    else:
        train, search = min(CALIBRATION, n // 10), min(max(300, n // 5), n // 3, 5000)
    if not train or not search:
        raise DataError("too few samples for three splits", got=n, wanted=f"at least {6 if trainable else 10}")
    return [train, search, n - train - search]


def divide(part: Part, amounts: Sequence[int], random: np.random.RandomState) -> list[Array]:
    """Cut a part into stretches of about ``amounts`` samples (exactly, unless equal samples sit on the border)."""
    n = len(part.samples)
    group = _groups(part.keys, n)
    members = np.argsort(group, kind="stable")
    counts = np.bincount(group, minlength=1)
    starts = np.cumsum(counts) - counts
    first = members[starts] if n else members
    labels = np.zeros(n, np.int64) if part.labels is None else part.labels
    order = _evenly(labels[first], random)
    ends = np.cumsum(counts[order]) if n else counts[:0]
    stretches = []
    begin = 0
    for wanted in np.cumsum(amounts):
        end = int(np.searchsorted(ends, wanted, side="left")) + 1 if wanted else begin
        picked = order[begin:end]
        stretches.append(np.concatenate([members[:0], *(members[starts[g] : starts[g] + counts[g]] for g in picked)]))
        begin = max(begin, end)
    return stretches


def _evenly(labels: Array, random: np.random.RandomState) -> Array:
    """A random order in which every stretch holds each class's share, to within one: classes interleaved by rank."""
    n = len(labels)
    shuffled = random.permutation(n)
    _, classes = np.unique(labels[shuffled], return_inverse=True)
    counts = np.bincount(classes)
    by_class = np.argsort(classes, kind="stable")
    rank = np.empty(n, np.int64)
    rank[by_class] = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
    position = (rank + random.random_sample(len(counts))[classes]) / counts[classes]
    return np.asarray(shuffled[np.argsort(position, kind="stable")])


def _groups(keys: Sequence[bytes] | None, n: int) -> Array:
    """A number per sample, equal for equal keys, in the order of first appearance."""
    if keys is None:
        return np.arange(n)
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def _without(rows: Array, part: Part, evaluation: Part) -> tuple[Array, int]:
    """The rows of train whose content does not occur in the evaluation part, and how many do."""
    if part.keys is None or evaluation.keys is None:
        return rows, 0
    forbidden = set(evaluation.keys)
    kept = np.array([row for row in rows.tolist() if part.keys[row] not in forbidden], np.int64)
    return kept, len(rows) - len(kept)
