"""The float network over the calibration samples: what its values look like, and how far that can be trusted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Task
from laconic.errors import DataError, TrialError
from laconic.fake_quantize import Shared
from laconic.steps.quantize.placement import Placement
from laconic.steps.quantize.ranges import Histogram

_BINS = 2048
_CHUNK = 32
_STRETCH = 2.0  # one sample that makes a range more than so many times wider is told of

See = Callable[[str, Tensor], None]


def calibration_inputs(task: Task) -> dict[str, Tensor]:
    """The calibration samples as the model takes them; :class:`DataError` where there are none, or not finite ones."""
    if min(task.calibration, len(task.train)) < 1:
        raise DataError("no calibration samples", got=0, wanted="at least 1 sample in the train split")
    inputs = {name: torch.as_tensor(x) for name, x in task.calibration_batch().inputs.items()}
    for name, x in inputs.items():
        finite = torch.isfinite(x).flatten(1).all(1) if x.dim() > 1 else torch.isfinite(x)
        if not bool(finite.all()):
            sample = int((~finite).nonzero()[0])
            raise DataError(
                f"calibration sample {sample} holds a value of {name} that is not finite", fix="repair or remove it"
            )
    return inputs


@torch.no_grad()
def observe(
    model: nn.Module, inputs: Mapping[str, Tensor], placement: Placement
) -> tuple[list[Histogram], dict[str, Tensor], list[str]]:
    """A histogram per group of values; the float channel means behind each layer's activation; and warnings, which
    name the ranges that one sample alone has set."""
    index = {name: i for i, (shared, _) in enumerate(placement.groups) for name in shared.active}
    ends: list[list[Tensor]] = [[] for _ in placement.groups]

    def extremes(name: str, x: Tensor) -> None:
        rows = x.flatten(1) if x.dim() > 1 else x[:, None]
        found = torch.stack(torch.aminmax(rows, dim=1), 1)  # (samples, 2)
        if not bool(torch.isfinite(found).all()):
            raise TrialError(f"values that are not finite behind {placement.groups[index[name]][0].active[0]}")
        ends[index[name]].append(found)

    run_over(model, inputs, dict.fromkeys(index, extremes))
    bounds = [torch.cat(found) for found in ends]
    low = [float(found[:, 0].min()) for found in bounds]
    high = [float(found[:, 1].max()) for found in bounds]
    high = [b if b > a else a + (abs(a) * 1e-6 or 1.0) for a, b in zip(low, high, strict=True)]  # histc wants a width
    counts = [np.zeros(_BINS) for _ in placement.groups]

    def count(name: str, x: Tensor) -> None:
        i = index[name]
        counts[i] += torch.histc(x, _BINS, low[i], high[i]).double().numpy()

    behind = {value: key for key, value in placement.fused.items()}
    sums: dict[str, Tensor] = {}

    def add(value: str, x: Tensor) -> None:
        key = behind[value]
        total = channel_mean(x, key) * len(x)
        sums[key] = sums[key] + total if key in sums else total

    run_over(model, inputs, dict.fromkeys(index, count), dict.fromkeys(behind, add))
    n = len(next(iter(inputs.values())))
    histograms = [Histogram(a, b, c) for a, b, c in zip(low, high, counts, strict=True)]
    warnings = _unreliable(n, [shared for shared, _ in placement.groups], bounds)
    return histograms, {key: total / n for key, total in sums.items()}, warnings


def _unreliable(n: int, groups: Sequence[Shared], bounds: Sequence[Tensor]) -> list[str]:
    """One line per kind of doubt: every range of a single sample, and ranges that one sample among many stretches."""
    names = [shared.active[0] for shared in groups]
    if n == 1:
        return [f"calibrated on one sample: the ranges of {', '.join(names)} are unreliable"]
    stretched = [name for name, found in zip(names, bounds, strict=True) if _stretch(found) > _STRETCH]
    return [f"one calibration sample alone sets the ranges of {', '.join(stretched)}"] if stretched else []


def _stretch(bounds: Tensor) -> float:
    """How many times wider the range is than without its most extreme sample. ``bounds`` (samples, 2): low, high."""
    low, high = bounds[:, 0].clamp(max=0).sort().values, bounds[:, 1].clamp(min=0).sort(descending=True).values
    if len(bounds) < 2 or float(high[0] - low[0]) == 0:
        return 1.0
    without = min(float(high[1] - low[0]), float(high[0] - low[1]))
    return float(high[0] - low[0]) / without if without > 0 else math.inf


def run_over(
    model: nn.Module, inputs: Mapping[str, Tensor], see: Mapping[str, See], also: Mapping[str, See] | None = None
) -> None:
    """Run the model in chunks of samples; ``see[name](name, value)`` and ``also[name](name, value)`` for each value
    that they name."""
    watchers = [see, also or {}]

    def tell(name: str, value: Any) -> None:
        for watcher in watchers:
            if name in watcher:
                watcher[name](name, value)

    def handler(key: str, module: str, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        for name, value in surgery.named_results(key, result):
            tell(name, value)
        return result

    n = len(next(iter(inputs.values())))
    for start in range(0, n, _CHUNK):
        chunk = {name: x[start : start + _CHUNK] for name, x in inputs.items()}
        for name, x in chunk.items():
            tell(f"input/{name}", x)
        with surgery.watched(model, handler):
            surgery.call(model, chunk)


def channel_axis(key: str, x: Tensor) -> int:
    """The axis of a layer's channels: 1 behind a convolution, the last behind a linear layer."""
    return 1 if "/conv" in key else x.dim() - 1


def channel_mean(x: Tensor, key: str) -> Tensor:
    """The mean of each channel (channels,) of what the layer called by ``key`` gave."""
    x, axis = thinned(x), channel_axis(key, x)
    return x.mean([d for d in range(x.dim()) if d != axis])


def thinned(x: Tensor) -> Tensor:
    """At most about 16 x 16 places of every map: means of hundreds of samples need no more, and the float and the
    quantized network are compared at the same ones."""
    if x.dim() < 4:
        return x
    return x[(slice(None), slice(None), *(slice(None, None, max(1, size // 8)) for size in x.shape[2:]))]
