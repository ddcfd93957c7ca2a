"""Optimal Brain Surgeon, layer by layer: what it costs to take weights away when the others make up for it, and how.

Hassibi and Stork 1993; per layer Frantar and Alistarh 2022, "Optimal Brain Compression" (arXiv 2208.11580), whose
objective is the layer's own output, E|W x - W' x|^2. Rows of W are independent of each other and share the Hessian
H = 2 M, M = E[x x']. Taking the weights P of a row w away costs (eq. 3 and section 4, with the factors 2 gone)

    w_P' ([M^-1]_PP)^-1 w_P,    for a single weight w_q^2 / [M^-1]_qq,

and the best that the others S can do is M_SS^-1 (M w)_S. :func:`greedy` takes one weight after the other from each
row and then, of all rows' traces, the cheapest (algorithms 1 and 2); :func:`sweep` goes through the columns once, for
layers where greedy would take too long (SparseGPT, Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1).
:func:`in_turn` does with channels what greedy does with weights: two that say the same cost nothing each, and a lot
together.

1 % of M's mean diagonal is added to it (:func:`damped`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from laconic.steps.prune.cut import Cut

DAMPING = 0.01
_COLUMNS = 128
_NUMBERS = 2**25
_MOST_GREEDY = 2**28  # rows x inputs^3
_MOST_SOLVED = 2**34
_TURNS = 64
_EQUAL = 1e-12
_LEAST = 1e-30


def damped(moments: Tensor) -> Tensor:
    """M (groups, inputs, inputs) in float64, never singular; an input that is never active has one on its diagonal."""
    found = moments.double().clone()
    diagonal = found.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True)
    diagonal += DAMPING * torch.where(mean > 0, mean, torch.ones_like(mean))
    return found


def losses(weight: Tensor, moments: Tensor, cut: Cut) -> Tensor:
    """What each unit's removal adds to the layer's mean squared output error: (units,).

    ``weight`` (out, inputs), ``moments`` (groups, inputs, inputs).
    """
    inverse = torch.linalg.inv(damped(moments))
    columns = cut.columns.reshape(-1, cut.width)
    blocks = inverse[:, columns[:, :, None], columns[:, None, :]]  # g b c c
    curvature = torch.linalg.inv(blocks)
    rows = weight[cut.rows][:, cut.columns].double()
    rows = rows.reshape(len(moments), -1, *columns.shape)  # g o b c: a convolution's groups are its rows, in order
    each = torch.einsum("gobc,gbcd,gobd->gob", rows, curvature, rows).flatten(0, 1)
    return each.reshape(cut.shape[0], cut.height, -1).sum(1).flatten().to(weight.dtype)


def in_turn(parts: Sequence[tuple[Tensor, Tensor, Cut]]) -> Tensor:
    """What each channel costs when all go, the cheapest first, each after those that are left have made up for the
    ones before: (channels,), float64, rising in the order in which they go.

    ``parts``: of each layer that reads the channels its weight (out, inputs), its moments (groups, inputs, inputs) and
    the cut whose units are the channels. A layer's cost is the share of its output's mean square, so that layers of
    other scales count alike. At most :data:`_TURNS` times is anything made up for: of many, several go at once.
    """
    readers = [_Reader(*part) for part in parts]
    left = torch.arange(parts[0][2].shape[1])
    order, costs = [], []
    for turn in left.tensor_split(min(len(left), _TURNS)):
        found = torch.stack([reader.costs(len(left)) for reader in readers]).sum(0)
        going = found.argsort(stable=True)[: len(turn)]
        order.append(left[going])
        costs.append(found[going])
        for reader in readers:
            reader.remove(going)
        left = left[_without(len(left), going)]
    needed = torch.cat(costs).cummax(0).values  # a step is as dear as the dearest before it, and comes behind it
    rising = needed + needed[-1] * _EQUAL * torch.arange(len(needed))
    return torch.empty_like(rising).index_copy_(0, torch.cat(order), rising)


class _Reader:
    """One layer from which channels are taken: its weights and M^-1 as they are then, of the channels that are left,
    in order, and behind them of what is in no channel."""

    def __init__(self, weight: Tensor, moments: Tensor, cut: Cut) -> None:
        matrix = damped(moments)
        w = weight[cut.rows].double().reshape(len(matrix), -1, weight.shape[1])  # g o k
        self.whole = ((w @ matrix) * w).sum().clamp_min(_LEAST)
        self.width = cut.width
        columns = torch.cat((cut.columns, _without(w.shape[2], cut.columns).nonzero()[:, 0]))
        self.w, self.inverse = w[:, :, columns], torch.linalg.inv(matrix)[:, columns][:, :, columns]

    def costs(self, channels: int) -> Tensor:
        """Of each channel that is left, what its removal leaves of the output unexplained."""
        n, groups = channels * self.width, len(self.w)
        rows = self.w[:, :, :n].reshape(groups, -1, channels, self.width).transpose(1, 2)  # g b o c
        blocks = self.inverse[:, :n, :n].reshape(groups, channels, self.width, channels, self.width)
        blocks = blocks.diagonal(dim1=1, dim2=3).movedim(3, 1)  # g b c c
        explained: Tensor = rows @ torch.linalg.inv(blocks) * rows
        return explained.sum((0, 2, 3)) / self.whole

    def remove(self, channels: Tensor) -> None:
        """Without these channels, the others changed so that the output changes least."""
        columns = (channels[:, None] * self.width + torch.arange(self.width)).flatten()
        kept = _without(self.w.shape[2], columns)
        held = self.inverse[:, columns][:, :, kept]  # g c k
        moved = torch.linalg.solve(self.inverse[:, columns][:, :, columns], held)
        self.w = self.w[:, :, kept] - self.w[:, :, columns] @ moved
        self.inverse = self.inverse[:, kept][:, :, kept] - held.transpose(1, 2) @ moved


def _without(count: int, places: Tensor) -> Tensor:
    """A mask (count,) that is false at ``places``."""
    return torch.ones(count, dtype=torch.bool).index_fill(0, places, value=False)


def selected(weight: Tensor, moments: Tensor, keep: int, cut: Cut, pattern: tuple[int, int] | None) -> Tensor:
    """Which single weights stay: a mask (out, inputs) of ``keep`` weights, or of n in every m of ``cut``'s columns."""
    grouped = weight.reshape(len(moments), -1, weight.shape[1])[:, :, cut.columns].double()  # g c k
    ordered = damped(moments)[:, cut.columns][:, :, cut.columns]
    if _cubes(grouped) <= _MOST_GREEDY:
        inverse = torch.linalg.inv(ordered)
        traces = [greedy(w, inverse[g], pattern) for g, w in enumerate(grouped)]
        order, costs = (torch.cat(parts) for parts in zip(*traces, strict=True))
        mask = _cheapest(order, costs, weight.numel() - keep if pattern is None else order.numel(), weight.shape[1])
    else:
        _, mask = sweep(grouped, ordered, keep / weight.numel(), pattern)
        mask = mask.flatten(0, 1)
    return torch.empty_like(mask).index_copy_(1, cut.columns, mask)


def compensated(weight: Tensor, moments: Tensor, mask: Tensor) -> Tensor:
    """The weights in ``mask`` (out, inputs), changed so that the layer's output changes least; the others zero."""
    grouped, kept = (t.reshape(len(moments), -1, t.shape[1]) for t in (weight.double(), mask))
    matrix = damped(moments)
    if _cubes(grouped) <= _MOST_SOLVED:
        found = torch.stack([solved(w, matrix[g], kept[g]) for g, w in enumerate(grouped)])
    else:
        found, _ = sweep(grouped, matrix, 1.0, None, kept)
    return found.reshape(weight.shape).to(weight.dtype) * mask


def _cubes(grouped: Tensor) -> int:
    groups, rows, inputs = grouped.shape
    return int(groups * rows * inputs**3)


def solved(weight: Tensor, matrix: Tensor, mask: Tensor) -> Tensor:
    """M_SS^-1 (M w)_S for each row w and its own S: (rows, inputs), ``mask`` of the same shape."""
    wanted = (weight @ matrix) * mask
    eye = torch.eye(len(matrix), dtype=matrix.dtype)
    some = max(1, _NUMBERS // matrix.numel())
    found = []
    for keep, right in zip(torch.split(mask, some), torch.split(wanted, some), strict=True):
        both = keep[:, :, None] & keep[:, None, :]
        found.append(torch.linalg.solve(torch.where(both, matrix, eye), right))
    return torch.cat(found)


def greedy(weight: Tensor, inverse: Tensor, pattern: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """The order (rows, steps) in which the weights of each row go, cheapest first, and what each costs.

    ``weight`` (rows, inputs), ``inverse`` = M^-1. With ``pattern`` n:m each m inputs lose m - n, else all go.
    """
    some = max(1, _NUMBERS // inverse.numel())
    found = [_greedy(rows, inverse, pattern) for rows in torch.split(weight, some)]
    order, costs = zip(*found, strict=True)
    return torch.cat(order), torch.cat(costs)


def _greedy(weight: Tensor, inverse: Tensor, pattern: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    rows, inputs = weight.shape
    n, m = pattern or (0, inputs)
    w, inv = weight.clone(), inverse.expand(rows, -1, -1).clone()
    gone = torch.zeros_like(weight, dtype=torch.bool)
    each = torch.arange(rows)
    order, costs = [], []
    for _ in range(inputs // m * (m - n)):
        full = (gone.reshape(rows, -1, m).sum(2) >= m - n).repeat_interleave(m, 1)
        diagonal = inv.diagonal(dim1=1, dim2=2)
        cost, q = (w.square() / diagonal).masked_fill(gone | full, torch.inf).min(1)
        column, pivot = inv[each, :, q], inv[each, q, q]
        w -= column * (w[each, q] / pivot)[:, None]
        inv -= column[:, :, None] * (column / pivot[:, None])[:, None, :]
        gone[each, q] = True
        w[gone] = 0.0
        order.append(q)
        costs.append(cost)
    return torch.stack(order, 1), torch.stack(costs, 1)


def _cheapest(order: Tensor, costs: Tensor, count: int, inputs: int) -> Tensor:
    """The mask without the ``count`` cheapest steps of all rows' traces; a step needs those before it."""
    needed = costs.cummax(1).values  # a step is as dear as the dearest before it
    going = needed.flatten().argsort(stable=True)[:count]
    mask = torch.ones(len(order), inputs, dtype=torch.bool)
    mask[going // order.shape[1], order.flatten()[going]] = False
    return mask


def sweep(
    weight: Tensor, matrix: Tensor, density: float, pattern: tuple[int, int] | None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One pass over the columns of ``weight`` (groups, channels, inputs): the pruned weights, updated, and the mask.

    What goes is chosen from blocks of 128 columns by w^2 / U_jj^2, U'U = M^-1, or is given by ``mask``.
    """
    w, u = weight.clone(), torch.linalg.cholesky(torch.linalg.inv(matrix), upper=True)
    kept = torch.ones_like(w, dtype=torch.bool) if mask is None else mask.clone()
    wide = _COLUMNS if pattern is None else max(1, _COLUMNS // pattern[1]) * pattern[1]
    diagonal = u.diagonal(dim1=1, dim2=2)[:, None]
    for start in range(0, w.shape[2], wide):
        stop = min(start + wide, w.shape[2])
        if mask is None and pattern is None:
            kept[:, :, start:stop] = _largest((w / diagonal)[:, :, start:stop].abs(), density)
        errors = torch.empty_like(w[:, :, start:stop])
        for j in range(start, stop):
            if mask is None and pattern is not None and j % pattern[1] == 0:
                ahead = slice(j, j + pattern[1])
                largest = (w[:, :, ahead] / diagonal[:, :, ahead]).abs().topk(pattern[0], 2).indices
                kept[:, :, ahead] = torch.zeros_like(kept[:, :, ahead]).scatter(2, largest, True)
            e = w[:, :, j] * ~kept[:, :, j] / u[:, j, j, None]  # g c
            w[:, :, j:stop] -= e[:, :, None] * u[:, None, j, j:stop]
            errors[:, :, j - start] = e
        w[:, :, stop:] -= errors @ u[:, start:stop, stop:]
    return w * kept, kept


def _largest(scores: Tensor, density: float) -> Tensor:
    """A mask of the largest ``density`` of each group's scores (groups, channels, columns)."""
    flat = scores.flatten(1)
    count = flat.shape[1] - round(flat.shape[1] * density)
    mask = torch.ones_like(flat, dtype=torch.bool)
    mask.scatter_(1, flat.argsort(dim=1, stable=True)[:, :count], False)
    return mask.reshape(scores.shape)
