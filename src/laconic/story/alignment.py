"""To what multiple of channels a target's kernels fill up: its alignment, measured.

A kernel that computes its channels in blocks takes as long for 40 of them as for 48, and cutting from 48 to 40 costs
accuracy for nothing. One network with convolutions of many widths beside each other is deployed on the target, with
what the search does to its networks (integers, a shorter float), and the runtime's own profile tells what each takes.
How wide blocks are depends on the arithmetic and on the instructions that the processor has.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from laconic.core import Context, Recipe, Target
from laconic.data import from_arrays
from laconic.data.source import INPUT
from laconic.runtime import runtime_of

ALIGNMENTS = (32, 16, 8, 4)
_TOPS = (96, 64)
"""From these widths a whole and a half alignment are taken away."""
WIDTHS = tuple(sorted({top - step // half for top in _TOPS for step in ALIGNMENTS for half in (1, 2)} | set(_TOPS)))
_WIDEST, _PLACES, _SAMPLES = max(_TOPS), 14, 64
_FREE = 0.2  # of what a whole step saves, what half a step may save where kernels fill up


class Widths(nn.Module):
    """Convolutions beside each other, (n, 96, 14, 14) -> (n, 10): each branch goes through as many channels as one of
    :data:`WIDTHS`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Conv2d(_WIDEST, width, 3, padding=1) for width in WIDTHS)
        self.second = nn.ModuleList(nn.Conv2d(width, _WIDEST, 3, padding=1) for width in WIDTHS)
        self.head = nn.Linear(_WIDEST, 10)

    def forward(self, x: Tensor) -> Tensor:
        found = [second(first(x).relu()).relu() for first, second in zip(self.first, self.second, strict=True)]
        y: Tensor = self.head(torch.stack(found).sum(0).mean((2, 3)))
        return y


def measured(recipe: Recipe, target: Target) -> int:
    """The alignment of ``target`` for networks after ``recipe``; raises what its steps and the deployment raise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Widths().eval()
    values = np.random.default_rng(0).normal(size=(_SAMPLES, _WIDEST, _PLACES, _PLACES)).astype(np.float32)
    task, runtime = from_arrays(values, trainable=False), runtime_of(target)
    model, _ = recipe.apply(network, task, Context(runtime.traits(target)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"widths{runtime.SUFFIX}"
        runtime.deploy(model, {INPUT: values[:2]}, path, target)
        return told_by(runtime.layer_times(path, target, {INPUT: values[:1].repeat(target.batch, 0)}))


def told_by(times: Mapping[str, float]) -> int:
    """The alignment that the milliseconds in the layers of :class:`Widths` tell: the largest step of which half saves
    nearly nothing; 1 where there is none."""
    took = {width: times.get(f"first.{i}", np.nan) + times.get(f"second.{i}", np.nan) for i, width in enumerate(WIDTHS)}
    for step in ALIGNMENTS:
        whole = sum(took[top] - took[top - step] for top in _TOPS)
        half = sum(took[top] - took[top - step // 2] for top in _TOPS)
        if whole > 0 and half < _FREE * whole:
            return step
    return 1
