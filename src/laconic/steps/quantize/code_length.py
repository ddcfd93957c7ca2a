"""The bits that a layer's integer weights will be coded in, from their own frequencies.

How often a weight is zero goes by its row and its column, as the contexts of a ``.lac`` file's coder do
(docs/format.md): with densities r of the row, c of the column and d of all, the odds that it is not are
odds(r) odds(c) / odds(d), r and c drawn to d by :data:`_PRIOR` weights. Then a sign of one bit, and the frequency of
the magnitude in the layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_PRIOR = 4.0
_LEAST_DENSITY = 1e-4


def lengths(magnitudes: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a zero, and what another integer's flag and sign take at each place (out, in); what a magnitude takes
    (top + 1,), 0 having none."""
    used = (magnitudes > 0).to(magnitudes.dtype)
    density = (used.sum() + 0.5) / (used.numel() + 1)
    odds = -torch.logit(density)
    for axis in (0, 1):
        along = (used.sum(axis, keepdim=True) + _PRIOR * density) / (used.shape[axis] + _PRIOR)
        odds = odds + torch.logit(along, _LEAST_DENSITY)
    counts = torch.stack([(magnitudes == k).sum() for k in range(1, top + 1)]) + 0.5
    magnitude = torch.cat([counts.new_zeros(1), -torch.log2(counts / counts.sum())])
    zero, other = (nn.functional.softplus(x) / math.log(2) for x in (odds, -odds))
    return zero, other + 1, magnitude
