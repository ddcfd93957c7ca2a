"""What is done to training pictures so that no two epochs see the same ones: a ``Task``'s ``augment``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def shift_and_flip(
    pixels: int, *, flip: bool = True
) -> Callable[[Mapping[str, Tensor], torch.Generator], Mapping[str, Tensor]]:
    """Move each picture (n, c, h, w) by up to ``pixels`` in both directions, zeros coming in from the sides, and, with
    ``flip``, mirror every second one: the augmentation of He et al. 2015 (arXiv 1512.03385, section 4.2). Inputs of
    another rank stay as they are."""

    def augment(inputs: Mapping[str, Tensor], generator: torch.Generator) -> Mapping[str, Tensor]:
        return {name: _moved(x, pixels, flip, generator) if x.dim() == 4 else x for name, x in inputs.items()}

    return augment


def _moved(x: Tensor, pixels: int, flip: bool, generator: torch.Generator) -> Tensor:
    n, c, h, w = x.shape
    device = x.device
    down, right = torch.randint(2 * pixels + 1, (2, n, 1), generator=generator, device=device)
    rows, columns = down + torch.arange(h, device=device), right + torch.arange(w, device=device)  # (n, h), (n, w)
    if flip:
        mirrored = torch.rand((n, 1), generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    samples = torch.arange(n, device=device)[:, None, None, None]
    channels = torch.arange(c, device=device)[None, :, None, None]
    wide = F.pad(x, (pixels, pixels, pixels, pixels))
    return wide[samples, channels, rows[:, None, :, None], columns[:, None, None, :]]
