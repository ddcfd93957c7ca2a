"""Where a package's accuracy goes: noise layer by layer, the classes that lost most, the samples that flipped.

The noise of a layer is what its value in the package's file differs from the original's by, on real samples:
SNR = 10 log10(sum y^2 / sum (y' - y)^2), in dB. It holds what the layers before left over. A layer's *own* noise is
measured with all it reads replaced by the original's values: that says where noise enters.

Steps that move factors or sums from a layer into its readers (Equalize, Smooth) change its values on purpose, and say
so in their facts, as Quantize does of the channels that it copies: the original's values are moved likewise before
anything is compared with them, or reads them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx

from laconic.core import Array, Arrays, Facts, JsonObject, Metric, Predictor, Split, Task
from laconic.data import with_reference
from laconic.errors import TargetError
from laconic.measure import chunks
from laconic.pack.package import Package
from laconic.runtime import runtime_of
from laconic.runtime.layer_values import cut, matched, observed, stored
from laconic.runtime.session import Session

_SAMPLES = 32
_LIMIT_DB = 120.0
"""Less noise than this is float32's own rounding."""


def wrong(package: Package, load: Callable[[Package], Task]) -> JsonObject:
    """Noise by layer, accuracy by class and the samples that are decided differently, as JSON.

    ``load`` gives the task, split as when the package was made. Of the data that it was made with, only the part that
    the search chose by is used: the holdout stays shut. Of other data, every sample is used. Raises
    :class:`TargetError` for a package whose file is not ONNX.
    """
    target = package.target
    if package.model_path.suffix != ".onnx":
        raise TargetError(
            f"files of {target.runtime} do not show the values of their layers", got=package.model_path.name,
            wanted="a package for a runtime that reads .onnx files",
        )  # fmt: skip
    task = load(package)
    known = task.fingerprint == package.manifest["data"]["fingerprint"]
    parts = ("search",) if known else ("train", "search", "holdout")
    original, mine = (runtime_of(target).open_file(p, target) for p in (package.baseline_path, package.model_path))
    names = [_name(part, i, getattr(task, part)) for part in parts for i in range(len(getattr(task, part)))]
    task = with_reference(task, original)
    samples = [row for part in parts for row in _judged(getattr(task, part), original, mine, task.metric)]
    for name, row in zip(names, samples, strict=True):
        row["sample"] = name
    classes = _classes(samples)
    flips = [_flip(row) for row in samples if row["decided"] and row["decided"][0] != row["decided"][1]]
    return {
        "why": "wrong",
        "package": str(package.folder),
        "target": str(target),
        "parts": list(parts),
        "n": len(samples),
        "metric": task.metric.name,
        **{when: task.metric.aggregate(np.array([row[when] for row in samples])) for when in ("before", "after")},
        **_noise(package, getattr(task, parts[0])),
        "classes": classes,
        "flips": flips,
        "labels": _labels(classes, flips, package.labels or task.labels),
    }


def _name(part: str, index: int, split: Split) -> str:
    """What to call a sample: what its split calls it, else its place there."""
    return str(split.name(index)) if hasattr(split, "name") else f"{part} {index}"


# ------------------------------------------------------------------------------------------------- classes and samples


def _judged(split: Split, original: Predictor, mine: Predictor, metric: Metric) -> Iterator[JsonObject]:
    """For each sample its target, both records and, where the metric has decisions, both decisions."""
    for indices in chunks(len(split)):
        batch = split.read(indices)
        outputs = original(batch.inputs), mine(batch.inputs)
        assert batch.targets is not None
        records = [metric.records(y, batch.targets) for y in outputs]
        decided = [metric.decide(y) for y in outputs] if metric.binary else []
        for i in range(len(indices)):
            yield {
                "wanted": int(batch.targets[i]) if metric.binary else None,
                "before": float(records[0][i]),
                "after": float(records[1][i]),
                "decided": [int(decision[i]) for decision in decided],
            }


def _flip(row: JsonObject) -> JsonObject:
    before, after = row["decided"]
    return {"sample": row["sample"], "wanted": row["wanted"], "before": before, "after": after}


def _labels(classes: list[JsonObject], flips: list[JsonObject], names: tuple[str, ...]) -> dict[str, str]:
    """What the classes that are mentioned are called."""
    mentioned = {row["class"] for row in classes}.union(
        *((row["wanted"], row["before"], row["after"]) for row in flips)
    )
    return {str(number): names[number] if 0 <= number < len(names) else str(number) for number in sorted(mentioned)}


def _classes(samples: list[JsonObject]) -> list[JsonObject]:
    """Accuracy before and after of each class, the one that lost most samples first."""
    found = []
    for number in sorted({row["wanted"] for row in samples if row["decided"]}):
        rows = [row for row in samples if row["wanted"] == number]
        right = [sum(row[when] for row in rows) for when in ("before", "after")]
        found.append(
            {
                "class": number,
                "n": len(rows),
                "lost": right[0] - right[1],
                "before": right[0] / len(rows),
                "after": right[1] / len(rows),
            }
        )
    return sorted(found, key=lambda row: -row["lost"])


# --------------------------------------------------------------------------------------------------------------- layers


def _noise(package: Package, split: Split) -> JsonObject:
    """SNR and own SNR of each layer that both files have in the same shape, and the names of the others."""
    target, moves = package.target, _Moves(package.manifest.get("facts", []))
    original, compressed = (onnx.load(path) for path in (package.baseline_path, package.model_path))
    layers, unmatched = matched(original, compressed)
    with tempfile.TemporaryDirectory() as folder:

        def opened(model: onnx.ModelProto) -> Session:
            path = Path(folder) / f"{len(list(Path(folder).iterdir()))}.onnx"
            onnx.save(model, path)
            return runtime_of(target).open_file(path, target)

        first, before = observed(original, [layer.original for layer in layers])
        second, after = observed(compressed, [layer.compressed for layer in layers])
        run_first, run_second = opened(first), opened(second)
        batches = list(_batches(split, run_first))
        found, seen = run_first(batches[0]), run_second(batches[0])
        shapes = {y.original: found[before[y.original]].shape for y in layers}
        same = [y for y in layers if seen[after[y.compressed]].shape == shapes[y.original]]
        third, given, alone = cut(compressed, {y.compressed: shapes[y.original] for y in same})
        run_third = opened(third)
        signal, noise, own = (np.zeros(len(same)) for _ in range(3))
        for batch in batches:
            wanted, seen = run_first(batch), run_second(batch)
            wanted = {y.compressed: moves.of(y.name, wanted[before[y.original]]) for y in same}
            clean = {given[name]: value for name, value in wanted.items() if name in given}
            apart = run_third({**dict(zip(run_first.input_names, _in_order(batch, run_first), strict=True)), **clean})
            for i, y in enumerate(same):
                value = wanted[y.compressed]
                signal[i] += _energy(value)
                noise[i] += _energy(seen[after[y.compressed]], value)
                own[i] += _energy(apart[alone[y.compressed]], value)
    rows: list[JsonObject] = [
        {"name": y.name, "snr_db": _decibels(s, n), "own_db": _decibels(s, o)}
        for y, s, n, o in zip(same, signal, noise, own, strict=True)
    ]
    in_integers = stored(compressed)
    return {
        "noise_samples": len(batches) * run_first.batch,
        "layers": rows,
        "entries": [_entry(row, in_integers) for row in sorted(rows, key=lambda row: row["own_db"])],
        "other_shape": [y.name for y in layers if y not in same],
        "unmatched": unmatched,
    }


class _Moves:
    """What became of the channels of layers on purpose, in the order of the steps' facts."""

    def __init__(self, facts: Sequence[Facts]) -> None:
        self.by_layer: dict[str, list[tuple[int, Array, Array]]] = {}
        self.copies: dict[str, list[tuple[int, list[int], list[float]]]] = {}
        for fact in facts:
            for name, axis, channels, shifts in fact.get("copied", []):
                self.copies.setdefault(name, []).append((axis, channels, shifts))
            for name, axis, factor, shift in fact.get("moved", []):
                self.by_layer.setdefault(name, []).append((axis, np.array(factor), np.array(shift)))

    def of(self, layer: str, value: Array) -> Array:
        """The original's value as it is after them: x / factor - shift per channel, and where a relu let nothing
        negative through, nothing below 0 either."""
        moved, rectified = value, value.min() >= 0
        for axis, factor, shift in self.by_layer.get(layer, []):
            shape = [-1 if d == axis % value.ndim else 1 for d in range(value.ndim)]
            moved = moved / factor.reshape(shape) - shift.reshape(shape)
        moved = np.maximum(moved, 0) if rectified else moved
        return self._with_copies(layer, moved.astype(value.dtype))

    def _with_copies(self, layer: str, value: Array) -> Array:
        """Channels that became copies of others are what these are, plus their shift where a relu let it through."""
        value = value.copy()
        for axis, channels, shifts in self.copies.get(layer, []):
            by_channel = np.moveaxis(value, axis, 0)
            source = by_channel[channels[0]].copy()
            for channel, shift in zip(channels, shifts, strict=True):
                by_channel[channel] = source + np.float32(shift) * (source > 0)
        return value


def _batches(split: Split, session: Session) -> Iterator[Arrays]:
    """Whole batches for the file, so that values whose first axis is not the sample compare too."""
    count = max(1, min(_SAMPLES, len(split)) // session.batch)
    for start in range(0, count * session.batch, session.batch):
        yield split.read([i % len(split) for i in range(start, start + session.batch)]).inputs


def _in_order(batch: Arrays, session: Session) -> list[Array]:
    """A batch's arrays as the file takes them: one input goes by position, several by name."""
    return list(batch.values()) if len(batch) == 1 else [batch[name] for name in session.input_names]


def _energy(value: Array, wanted: Array | None = None) -> float:
    """The sum of squares of a value, or of its difference from what was wanted; infinite where it is not finite."""
    difference = value.astype(np.float64) - (0.0 if wanted is None else wanted)
    found = float(np.sum(difference**2))
    return found if np.isfinite(found) else float("inf")


def _decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise), between the limits that mean none at all and nothing else."""
    if noise == 0:
        return _LIMIT_DB
    ratio = signal / noise
    return float(np.clip(10 * np.log10(ratio), -_LIMIT_DB, _LIMIT_DB)) if ratio > 0 else -_LIMIT_DB


def _entry(row: JsonObject, in_integers: dict[str, bool]) -> JsonObject:
    layer = row["name"].split(", call ")[0]
    return {**row, "do": f"--keep {layer} leaves it in float" if in_integers.get(layer) else None}
