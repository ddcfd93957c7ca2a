"""The square root of the input channels' second moments, so that least error of a kernel is least error of its outputs.

A technique that approximates W S in place of W, and takes S away again from the factor that reads the input channels,
goes for E |(W - W') x|^2 in place of |W - W'|^2: with S S' = E[x x'] over channels, places of the kernel taken as
independent of each other (data-aware as in Wang et al. 2024, arXiv 2403.07378, there for matrices).
"""

from __future__ import annotations

import torch
from torch import Tensor

from laconic.steps.factorize.sites import Site

_DAMPING = 0.01


def damping(squares: Tensor) -> Tensor:
    """What to add to a layer's second moments, whose diagonal is ``squares``, for inputs that are never active: 1 % of
    the mean; something where nothing is active."""
    mean = squares.mean()
    return torch.where(mean > 0, _DAMPING * mean, 1.0)


def root(site: Site, x: Tensor) -> tuple[Tensor, Tensor]:
    """S and its inverse, both (groups, inputs, inputs) and symmetric; ``x`` (groups, rows, inputs x kernel)."""
    channels = x.reshape(len(x), x.shape[1], site.inputs, -1)  # g r i k
    moments = torch.einsum("grik,grjk->gij", channels, channels) / (channels.shape[1] * channels.shape[3])
    values, vectors = torch.linalg.eigh(moments)
    scale = (values.clamp_min(0) + damping(values)).sqrt()
    return (vectors * scale[:, None]) @ vectors.transpose(1, 2), (vectors / scale[:, None]) @ vectors.transpose(1, 2)
