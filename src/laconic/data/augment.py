"""What is done to training pictures so that no two epochs see the same ones: a ``Task``'s ``augment``."""

from __future__ import annotations

import math
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


def rotate_and_scale(
    degrees: float, scale: float, shear: float, pixels: float
) -> Callable[[Mapping[str, Tensor], torch.Generator], Mapping[str, Tensor]]:
    """Rotate each picture (n, c, h, w) by up to ``degrees``, stretch it along both axes by up to the factor 1 +
    ``scale``, shear it by up to ``shear``, and move it by up to ``pixels``, each uniformly and in both directions;
    zeros come in from the sides (the affine distortions of Simard, Steinkraus and Platt 2003). Inputs of another rank
    stay as they are."""

    def augment(inputs: Mapping[str, Tensor], generator: torch.Generator) -> Mapping[str, Tensor]:
        return {name: distorted(x, generator) if x.dim() == 4 else x for name, x in inputs.items()}

    def distorted(x: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = x.shape
        drawn = 2 * torch.rand(6, n, generator=generator, device=x.device) - 1
        angle, along, down = drawn[0] * math.radians(degrees), 1 + scale * drawn[1], 1 + scale * drawn[2]
        cos, sin, tilt = torch.cos(angle), torch.sin(angle), shear * drawn[3]
        first = torch.stack([cos * along, (tilt - sin) * along, 2 * pixels / width * drawn[4]], 1)
        second = torch.stack([sin * down, cos * down, 2 * pixels / height * drawn[5]], 1)
        grid = F.affine_grid(torch.stack([first, second], 1), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)

    return augment
