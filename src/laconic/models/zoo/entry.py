"""What the zoo states of each network: how to build it, what it eats, what it tells apart, where it is described."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from laconic.core import Preprocess


@dataclass(frozen=True)
class Entry:
    """One network of the zoo. ``input_shape`` is without the batch; ``paper`` names authors, year and arXiv id.

    ``preprocess`` is None where the input is no picture. ``adapt`` gives the tensors of the network's published weights
    the names and the form of the module's own, and leaves those alone that have them.
    """

    build: Callable[[], nn.Module]
    preprocess: Preprocess | None
    input_shape: tuple[int, ...]
    labels: tuple[str, ...]
    paper: str
    adapt: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict
