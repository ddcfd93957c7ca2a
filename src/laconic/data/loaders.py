"""Plain torch DataLoaders, read by index: ``loader.dataset[i]`` and ``loader.collate_fn``; workers are not used.

A batch is ``(x, y)``, ``x`` alone, or a mapping of inputs in which ``y, label, labels, target`` or ``targets`` is the
target. In evaluation the same index must give the same sample, so a shuffling sampler and random augmentation are
refused there. For train a RandomSampler is fine, since it is not used; augmentation is allowed and noted, and then
calibration samples vary from read to read. A SubsetRandomSampler's indices are the part's samples.

Reading whole data sets may take long, so content is hashed, and repeated samples are looked for, in 64 samples of each
part, spread evenly; parts of one common data set are compared by index. Labels are checked as they are read.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from laconic.core import Batch
from laconic.data.arrays import as_array, inputs_of, row_keys
from laconic.data.labels import whole_numbers
from laconic.data.source import Part, Request, Source, as_rows, content_hash, refuse_overlap
from laconic.errors import DataError

if TYPE_CHECKING:
    from laconic.core import Array

_TARGETS = ("y", "label", "labels", "target", "targets")
_PROBED = 64
_TWICE = 16


def is_loader(value: object) -> bool:
    """Whether ``value`` is a torch DataLoader; where torch was never imported nothing is."""
    data = sys.modules.get("torch.utils.data")
    return data is not None and isinstance(value, data.DataLoader)


def loader_source(given: Mapping[str, Any], request: Request) -> Source:
    """A source from ``{part: DataLoader}``."""
    splits = {name: Loaded(loader, name, request.classify) for name, loader in given.items()}
    refuse_overlap({name: split.identities for name, split in splits.items()})
    looks = {name: split.look() for name, split in splits.items()}
    for name, look in looks.items():
        if look.varies and name != "train":
            raise DataError(f"random augmentation in {name}: the same sample read twice differs", fix="take it out")
    refuse_overlap({name: look.keys for name, look in looks.items()})
    labelled = {look.targets is not None for look in looks.values()}
    if len(labelled) > 1:
        raise DataError("labels in some parts only", fix="give y everywhere or nowhere")
    if labelled == {False} and not request.classify:
        raise DataError("a score of your own needs targets", got="no y")
    parts = {name: Part(split, None, split.identities, looks[name].content) for name, split in splits.items()}
    notes = {
        "content_hash": f"{_PROBED} samples of each part",
        "augmented_train": any(x.varies for x in looks.values()),
    }
    found = [look.targets for look in looks.values() if look.targets is not None]
    counts = np.bincount(np.concatenate(found)) if found and request.classify else None
    chance = None if counts is None else float(counts.max() / counts.sum())
    return Source("loaders", parts, labelled == {True}, chance=chance, notes=notes)


@dataclass(frozen=True)
class _Look:
    """What a few samples of a part show; the content of a part that varies is its length alone."""

    keys: list[bytes]
    targets: Array | None
    varies: bool
    content: str


class Loaded:
    """A split of a DataLoader's samples; ``identities`` are equal for one sample of one underlying data set."""

    def __init__(self, loader: Any, name: str, classify: bool) -> None:
        self._name = name
        self._classify = classify
        self._dataset = loader.dataset
        self._collate = loader.collate_fn
        self._rows = _sampled(loader, name)
        if not len(self._rows):
            raise DataError(f"no samples in {name}", got="an empty DataLoader")
        self.identities = _identities(self._dataset, self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: Sequence[int]) -> Batch:
        rows = self._rows[as_rows(indices)].tolist()
        where = f"a batch of {self._name}"
        try:
            batch = self._collate([self._dataset[row] for row in rows])
        except Exception as fault:  # whatever the caller's own data set raises
            got = f"{type(fault).__name__}: {fault}"
            raise DataError(
                f"the data set of {self._name} cannot be read", got=got, wanted="samples by index"
            ) from fault
        x, y = _split_batch(batch)
        inputs = inputs_of(x, where)
        targets = None if y is None else as_array(y, f"y of {where}")
        if targets is not None and self._classify:
            targets = whole_numbers(targets, where)
        lengths = {len(array) for array in (*inputs.values(), *(() if targets is None else (targets,)))}
        if lengths != {len(rows)}:
            raise DataError("collate_fn gives another number of samples", got=sorted(lengths), wanted=len(rows))
        return Batch(inputs, targets)

    def look(self) -> _Look:
        """Read a few samples, some of them twice."""
        some = np.unique(np.linspace(0, len(self) - 1, min(_PROBED, len(self))).astype(np.int64)).tolist()
        batch = self.read(some)
        keys = list(row_keys(batch.inputs))
        again = list(row_keys(self.read(some[:_TWICE]).inputs))
        varies = keys[:_TWICE] != again
        content = content_hash([] if varies else keys, None if varies else batch.targets, f"{len(self)} samples")
        return _Look(keys, batch.targets, varies, content)


def _sampled(loader: Any, name: str) -> Array:
    """The indices of the data set that belong to the loader."""
    from torch.utils import data

    if isinstance(loader.dataset, data.IterableDataset):
        raise DataError(
            f"an IterableDataset in {name} cannot be read by index",
            fix="give a data set with __getitem__ and __len__, or arrays: from_arrays(x, y)",
        )
    if type(loader.batch_sampler) is not data.BatchSampler:
        got = "batch_size=None" if loader.batch_sampler is None else type(loader.batch_sampler).__name__
        raise DataError(f"the samples of {name} cannot be known", got=got, wanted="a DataLoader with batch_size=N")
    sampler = loader.batch_sampler.sampler
    if type(sampler) is data.SequentialSampler:
        return np.arange(len(sampler))
    kind = type(sampler).__name__
    if name != "train":
        raise DataError(f"a shuffling sampler in {name}", got=kind, wanted="shuffle=False", fix="or a data.Subset")
    if isinstance(sampler, data.SubsetRandomSampler):
        return np.asarray(sampler.indices, np.int64)
    if isinstance(sampler, (data.RandomSampler, data.WeightedRandomSampler)):
        return np.arange(len(loader.dataset))
    raise DataError(f"the samples of {name} cannot be known", got=kind, fix="choose them with data.Subset instead")


def _identities(dataset: Any, rows: Array) -> list[bytes]:
    from torch.utils.data import Subset

    while isinstance(dataset, Subset):
        rows = np.asarray(dataset.indices, np.int64)[rows]
        dataset = dataset.dataset
    return [b"%d:%d" % (id(dataset), row) for row in rows.tolist()]


def _split_batch(batch: Any) -> tuple[Any, Any]:
    """Inputs and target of a collated batch."""
    if isinstance(batch, Mapping):
        targets = [key for key in _TARGETS if key in batch]
        if len(targets) > 1:
            raise DataError(
                "a batch with several targets", got=", ".join(targets), wanted=f"one of {', '.join(_TARGETS)}"
            )
        inputs = {key: value for key, value in batch.items() if key not in targets}
        return inputs, batch[targets[0]] if targets else None
    if isinstance(batch, (tuple, list)):
        if len(batch) != 2:
            raise DataError("a batch of unknown form", got=f"{len(batch)} values", wanted="(x, y), x, or a mapping")
        return batch[0], batch[1]
    return batch, None
