"""What the zoo states of each network: how to build it, what it eats, what it tells apart, where it is described."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from laconic.core import Preprocess


@dataclass(frozen=True)
class Entry:
    """One network of the zoo. ``input_shape`` is without the batch; ``paper`` names authors, year and arXiv id."""

    build: Callable[[], nn.Module]
    preprocess: Preprocess
    input_shape: tuple[int, ...]
    labels: tuple[str, ...]
    paper: str
