"""What every source of data promises, checked over the table of kinds; each check is shown to catch a broken source.

A source is given as ``build(variant, trainable, seed) -> Task``: variant 0 and 1 differ in the content of one sample.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from laconic.core import Batch, Preprocess, Split, Task
from laconic.data import KINDS, from_arrays, from_loaders, from_splits, load

N, CLASSES = 240, 4


@dataclass(frozen=True)
class Order:
    """What a check asks of a source."""

    variant: int = 0
    trainable: bool = True
    seed: int = 0


Build = Callable[[Order], Task]


def images(variant: int, n: int = N, start: int = 0) -> np.ndarray:
    """Different pictures of 6x6 grey pixels, sorted by class; the variant changes one pixel of one of them."""
    pixels = np.random.default_rng(start).integers(0, 255, (n, 6, 6), dtype=np.uint8)
    pixels[3, 2, 1] += variant
    return pixels


def labels(n: int = N) -> np.ndarray:
    return np.arange(n) * CLASSES // n


def arrays(variant: int, n: int = N, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return images(variant, n, start)[:, None].astype(np.float32) / 255, labels(n)


def png(pixels: np.ndarray) -> bytes:
    Image.fromarray(pixels).save(out := io.BytesIO(), "PNG")
    return out.getvalue()


# ------------------------------------------------------------------------------------------------------------- sources


def loaded(spec: str | Path, order: Order) -> Task:
    return load(str(spec), preprocess=Preprocess(channels="L"), trainable=order.trainable, seed=order.seed)


def digits(folder: Path, order: Order) -> Task:
    if order.variant:
        pytest.skip("the digits are embedded: there is no other content")
    return loaded("digits", order)


def image_folder(folder: Path, order: Order) -> Task:
    for row, (pixels, label) in enumerate(zip(images(order.variant), labels(), strict=True)):
        (folder / f"{label}").mkdir(exist_ok=True)
        (folder / f"{label}/{row:04d}.png").write_bytes(png(pixels))
    return loaded(folder, order)


def official_folder(folder: Path, order: Order) -> Task:
    for part, n, start in (("train", N, 0), ("val", N // 2, 1)):
        for row, (pixels, label) in enumerate(zip(images(order.variant, n, start), labels(n), strict=True)):
            (folder / f"{part}/{label}").mkdir(parents=True, exist_ok=True)
            (folder / f"{part}/{label}/{row:04d}.png").write_bytes(png(pixels))
    return loaded(folder, order)


def parquet_file(folder: Path, order: Order) -> Task:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"image": [png(x) for x in images(order.variant)], "label": labels()})
    parquet.write_table(table, folder / "data.parquet")
    return loaded(folder / "data.parquet", order)


def idx_files(folder: Path, order: Order) -> Task:
    for word, n, start in (("train", N, 0), ("t10k", N // 2, 1)):
        pixels, classes = images(order.variant, n, start), labels(n).astype(np.uint8)
        head = struct.pack(">4i", 0x803, *pixels.shape)
        (folder / f"{word}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        (folder / f"{word}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, n) + classes.tobytes())
    return loaded(folder, order)


def npz_file(folder: Path, order: Order) -> Task:
    x, y = arrays(order.variant)
    np.savez(folder / "data.npz", x=x, y=y)
    return loaded(folder / "data.npz", order)


def python_file(folder: Path, order: Order) -> Task:
    x, y = arrays(order.variant)
    np.savez(folder / "data.npz", x=x, y=y)
    text = "import numpy, pathlib\ndef make():\n    f = numpy.load(pathlib.Path(__file__).parent / 'data.npz')\n"
    (folder / "mine.py").write_text(text + "    return f['x'], f['y']\n")
    return loaded(f"{folder / 'mine.py'}:make", order)


def plain_arrays(folder: Path, order: Order) -> Task:
    return from_arrays(*arrays(order.variant), trainable=order.trainable, seed=order.seed)


def given_splits(folder: Path, order: Order) -> Task:
    starts = {"train": 0, "search": 1, "holdout": 2}
    splits = {name: arrays(order.variant, start=start) for name, start in starts.items()}
    return from_splits(splits, trainable=order.trainable, seed=order.seed)


def loaders(folder: Path, order: Order) -> Task:
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    sets = [TensorDataset(*map(torch.from_numpy, arrays(order.variant, start=start))) for start in range(3)]
    return from_loaders(*(DataLoader(found, 7) for found in sets), trainable=order.trainable, seed=order.seed)


SOURCES: dict[str, tuple[str, Callable[[Path, Order], Task]]] = {
    "digits": ("digits", digits),
    "image folder": ("image folder", image_folder),
    "official image folder": ("image folder", official_folder),
    "parquet": ("parquet", parquet_file),
    "idx": ("idx", idx_files),
    "npz": ("npz", npz_file),
    "python file": ("python file", python_file),
    "arrays": ("from Python", plain_arrays),
    "splits": ("from Python", given_splits),
    "loaders": ("from Python", loaders),
}

# -------------------------------------------------------------------------------------------------------------- checks


def splits_of(task: Task) -> dict[str, Split]:
    return {"train": task.train, "search": task.search, "holdout": task.holdout}


def everything(split: Split) -> Batch:
    return split.read(range(len(split)))


def rows_of(split: Split) -> list[bytes]:
    return [row.tobytes() for row in everything(split).inputs["input"]]


def splits_are_disjoint(build: Build) -> None:
    for trainable in (True, False):
        found = [set(rows_of(split)) for split in splits_of(build(Order(trainable=trainable))).values()]
        assert not found[0] & found[1]
        assert not found[0] & found[2]
        assert not found[1] & found[2]
        assert all(found)


def the_same_again(build: Build) -> None:
    one, other = build(Order()), build(Order())
    for name, split in splits_of(one).items():
        first, second = everything(split), everything(splits_of(other)[name])
        np.testing.assert_array_equal(first.inputs["input"], second.inputs["input"])
        np.testing.assert_array_equal(first.targets, second.targets)
    assert one.provenance == other.provenance


def an_index_is_a_sample(build: Build) -> None:
    for split in splits_of(build(Order())).values():
        whole = everything(split)
        for rows in ([len(split) - 1, 0, 3, 0], [2], np.array([1, 1]), range(1, 5)):
            batch = split.read(rows)  # type: ignore[arg-type]
            np.testing.assert_array_equal(batch.inputs["input"], whole.inputs["input"][np.asarray(rows)])
            assert whole.targets is not None
            np.testing.assert_array_equal(batch.targets, whole.targets[np.asarray(rows)])


def forms_are_right(build: Build) -> None:
    task = build(Order())
    shapes = set()
    for split in splits_of(task).values():
        batch = everything(split)
        assert list(batch.inputs) == ["input"]
        x, y = batch.inputs["input"], batch.targets
        assert x.dtype == np.float32
        assert np.isfinite(x).all()
        assert y is not None
        assert y.dtype == np.int64
        assert len(x) == len(split) == len(y)
        assert y.shape == (len(split),)
        shapes.add(x.shape[1:])
    assert len(shapes) == 1


def labels_are_classes(build: Build) -> None:
    task = build(Order())
    found = [everything(split).targets for split in splits_of(task).values()]
    seen = set(np.concatenate(found).tolist())  # type: ignore[arg-type]
    assert min(seen) == 0
    assert seen == set(range(len(task.labels) or len(seen)))


def classes_are_shared_out(build: Build) -> None:
    task = build(Order())
    counts = [np.bincount(everything(split).targets, minlength=10) for split in splits_of(task).values()]  # type: ignore[arg-type]
    shares = np.array([count / count.sum() for count in counts])
    assert np.ptp(shares, axis=0).max() < 0.06


def order_is_mixed(build: Build) -> None:
    task = build(Order())
    for split in splits_of(task).values():
        y = everything(split).targets
        assert y is not None
        assert (np.diff(y) != 0).mean() > 0.5
    batch = build(Order(trainable=False)).calibration_batch().targets
    assert batch is not None
    assert len(set(batch[: len(batch) // 2].tolist())) >= CLASSES


def calibration_alone_without_training(build: Build) -> None:
    task = build(Order(trainable=False))
    assert not task.trainable
    assert len(task.train) == len(task.calibration_batch().inputs["input"]) == task.calibration <= 128
    assert build(Order()).trainable


def the_fingerprint_follows_content_and_split(build: Build) -> None:
    task = build(Order())
    assert task.fingerprint == build(Order()).fingerprint
    assert task.fingerprint != build(Order(seed=1)).fingerprint
    assert task.fingerprint != build(Order(trainable=False)).fingerprint
    assert task.fingerprint != build(Order(variant=1)).fingerprint


def seeds_choose_other_orders(build: Build) -> None:
    assert rows_of(build(Order()).holdout) != rows_of(build(Order(seed=1)).holdout)


def what_is_read_is_the_readers(build: Build) -> None:
    split = build(Order()).search
    batch = split.read([0, 1])
    before = batch.inputs["input"].copy(), np.copy(batch.targets)  # type: ignore[arg-type]
    batch.inputs["input"][:] = -7
    batch.targets[:] = -7  # type: ignore[index]
    again = split.read([0, 1])
    np.testing.assert_array_equal(again.inputs["input"], before[0])
    np.testing.assert_array_equal(again.targets, before[1])


def provenance_is_complete(build: Build) -> None:
    task = build(Order(seed=3))
    found = json.loads(json.dumps(task.provenance))
    assert found["n"] == {name: len(split) for name, split in splits_of(task).items()}
    assert found["seed"] == 3
    assert {"source", "kind", "rule", "indices", "corrupt", "content_hash"} <= set(found)


CHECKS = (
    splits_are_disjoint,
    the_same_again,
    an_index_is_a_sample,
    forms_are_right,
    labels_are_classes,
    classes_are_shared_out,
    order_is_mixed,
    calibration_alone_without_training,
    the_fingerprint_follows_content_and_split,
    seeds_choose_other_orders,
    what_is_read_is_the_readers,
    provenance_is_complete,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", SOURCES)
def test_every_source(name: str, check: Callable[[Build], None], tmp_path: Path) -> None:
    check(lambda order: SOURCES[name][1](tmp_path, order))


def test_every_kind_of_the_table_is_checked() -> None:
    assert {kind for kind, _ in SOURCES.values()} == {*KINDS, "from Python"}


def test_the_first_kind_that_matches_is_the_right_one(tmp_path: Path) -> None:
    for name, (kind, make) in SOURCES.items():
        (tmp_path / name).mkdir()
        found = make(tmp_path / name, Order()).provenance["kind"]
        assert found in (("arrays", "loaders") if kind == "from Python" else (kind,))


# -------------------------------------------------------------------------------------------------------------- broken


class Changed:
    """A split with each batch changed by ``change(batch, indices)``."""

    def __init__(self, base: Split, change: Callable[[Batch, Sequence[int]], Batch]) -> None:
        self.base = base
        self.change = change

    def __len__(self) -> int:
        return len(self.base)

    def read(self, indices: Sequence[int]) -> Batch:
        return self.change(self.base.read(indices), indices)


def changed(change: Callable[[Batch, Sequence[int]], Batch]) -> Build:
    def build(order: Order) -> Task:
        task = plain_arrays(Path(), order)
        return replace(task, **{name: Changed(split, change) for name, split in splits_of(task).items()})

    return build


def altered(**fields: Callable[[Task, Order], Any]) -> Build:
    def build(order: Order) -> Task:
        task = plain_arrays(Path(), order)
        return replace(task, **{name: value(task, order) for name, value in fields.items()})

    return build


def noise(batch: Batch, indices: Sequence[int]) -> Batch:
    x = batch.inputs["input"]
    return Batch({"input": x + np.random.default_rng().normal(size=x.shape).astype(np.float32)}, batch.targets)


def by_position(batch: Batch, indices: Sequence[int]) -> Batch:
    return Batch({"input": np.sort(batch.inputs["input"], axis=0)}, batch.targets)


class Shared:
    """Hands out its own memory."""

    def __init__(self, split: Split) -> None:
        self.batch = everything(split)

    def __len__(self) -> int:
        return len(self.batch.inputs["input"])

    def read(self, indices: Sequence[int]) -> Batch:
        assert self.batch.targets is not None
        part = slice(indices[0], indices[-1] + 1)
        return Batch({"input": self.batch.inputs["input"][part]}, self.batch.targets[part])


def sorted_split(split: Split) -> Split:
    targets = everything(split).targets
    assert targets is not None
    rows = np.argsort(targets, kind="stable")

    class Sorted:
        def __len__(self) -> int:
            return len(rows)

        def read(self, indices: Sequence[int]) -> Batch:
            return split.read(rows[np.asarray(indices)].tolist())

    return Sorted()


BROKEN: dict[Callable[[Build], None], Build] = {
    splits_are_disjoint: altered(holdout=lambda task, order: task.search),
    the_same_again: changed(noise),
    an_index_is_a_sample: changed(by_position),
    forms_are_right: changed(
        lambda batch, _: Batch({"input": batch.inputs["input"].astype(np.float64)}, batch.targets)
    ),
    labels_are_classes: changed(lambda batch, _: Batch(batch.inputs, batch.targets * 2)),  # type: ignore[operator]
    classes_are_shared_out: altered(
        search=lambda task, order: Changed(task.search, lambda batch, _: Batch(batch.inputs, batch.targets // 2))  # type: ignore[operator]
    ),
    order_is_mixed: altered(search=lambda task, order: sorted_split(task.search)),
    calibration_alone_without_training: altered(train=lambda task, order: plain_arrays(Path(), Order()).train),
    the_fingerprint_follows_content_and_split: altered(
        fingerprint=lambda task, order: f"{order.seed}{order.trainable}"
    ),
    seeds_choose_other_orders: altered(holdout=lambda task, order: plain_arrays(Path(), Order()).holdout),
    what_is_read_is_the_readers: altered(search=lambda task, order: Shared(task.search)),
    provenance_is_complete: altered(provenance=lambda task, order: {**task.provenance, "n": {"train": 1}}),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_check_catches_a_broken_source(check: Callable[[Build], None]) -> None:
    check(lambda order: plain_arrays(Path(), order))
    with pytest.raises(AssertionError):
        check(BROKEN[check])
