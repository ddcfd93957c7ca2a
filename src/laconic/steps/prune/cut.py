"""Units: what is kept or taken away together, whatever the granularity.

A weight is a matrix (out, inputs), inputs = in / groups times the kernel's places. A cut takes rows and columns of it
in some order, r rows and c columns at a time; each r x c piece is a unit. A single weight is 1 x 1, a kernel 1 x (its
places), a channel that a layer reads (all rows) x (its columns).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from laconic import surgery
from laconic.errors import RecipeError

_BLOCK, _PATTERN = re.compile(r"([1-9]\d*)x([1-9]\d*)"), re.compile(r"([1-9]\d*):([1-9]\d*)")


@dataclass(frozen=True)
class Cut:
    """``rows`` (R,), ``height`` at a time, and ``columns`` (C,), ``width`` at a time; R / height x C / width units."""

    rows: Tensor
    height: int
    columns: Tensor
    width: int

    def __call__(self, matrix: Tensor) -> Tensor:
        """The numbers of each unit: (..., out, inputs) -> (..., units, height x width)."""
        lead = matrix.shape[:-2]
        taken = matrix[..., self.rows, :][..., self.columns]
        high, wide = self.shape
        blocks = taken.reshape(*lead, high, self.height, wide, self.width).transpose(-3, -2)
        return blocks.reshape(*lead, high * wide, self.height * self.width)

    def spread(self, units: Tensor, shape: torch.Size) -> Tensor:
        """One value per unit -> one per weight, (out, inputs); what is in no unit is true (or one)."""
        pieces = units.reshape(self.shape).repeat_interleave(self.height, 0).repeat_interleave(self.width, 1)
        whole = torch.ones(shape, dtype=units.dtype)
        whole[self.rows[:, None], self.columns] = pieces
        return whole

    @property
    def shape(self) -> tuple[int, int]:
        """Units one below the other, and side by side."""
        return len(self.rows) // self.height, len(self.columns) // self.width


def matrix_of(weight: Tensor) -> Tensor:
    """(out, in / groups, ...) -> (out, inputs)."""
    return weight.reshape(len(weight), -1)


@dataclass(frozen=True)
class Granularity:
    """``weight``, ``kernel``, ``4x1`` (blocks of outputs x inputs) or ``2:4`` (of each 4 inputs 2 stay)."""

    name: str

    def __post_init__(self) -> None:
        pattern = self.pattern
        known = self.name in ("weight", "kernel") or self.block is not None
        if not known and (pattern is None or pattern[0] >= pattern[1]):
            wanted = "weight, kernel, a block as 4x1, or a pattern as 2:4"
            raise RecipeError("granularity of PruneWeights", got=repr(self.name), wanted=wanted)

    @property
    def pattern(self) -> tuple[int, int] | None:
        """(n, m) of an n:m pattern."""
        found = _PATTERN.fullmatch(self.name)
        return (int(found[1]), int(found[2])) if found else None

    @property
    def block(self) -> tuple[int, int] | None:
        """(outputs, inputs) of a block."""
        found = _BLOCK.fullmatch(self.name)
        return (int(found[1]), int(found[2])) if found else None

    def cut(self, layer: surgery.Layer) -> Cut | str:
        """How a layer's weight is cut, or why it cannot be.

        Blocks and patterns run along the input channels at one place of the kernel, as kernels for sparse weights take
        them (Mishra et al. 2021, arXiv 2104.08378, section 3.1).
        """
        out, inputs, *space = layer.weight.shape
        places = math.prod(space)
        if self.name == "kernel":
            if places == 1:
                return "it has no kernels"
            return Cut(torch.arange(out), 1, torch.arange(inputs * places), places)
        height, width = self.block or (1, 1)
        together = self.pattern[1] if self.pattern else width
        if out % height or inputs % together:
            return f"{out} x {inputs} does not divide into {self.name}"
        columns = torch.arange(inputs * places).reshape(inputs, places).T.flatten()
        return Cut(torch.arange(out), height, columns, width)
