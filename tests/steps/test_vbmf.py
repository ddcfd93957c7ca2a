"""Ranks by variational Bayes: what was put in is found, and noise is not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from laconic.core import Array
from laconic.steps.factorize import vbmf


def noisy(rows: int, columns: int, rank: int, noise: float) -> Array:
    draw = np.random.default_rng(0)
    signal = draw.standard_normal((rows, rank)) @ draw.standard_normal((rank, columns))
    return np.asarray(signal + noise * draw.standard_normal((rows, columns)))


@pytest.mark.parametrize(
    ("rows", "columns", "rank", "noise"),
    [(50, 100, 5, 0.1), (100, 100, 10, 0.3), (64, 576, 20, 1.0), (40, 200, 1, 0.5), (64, 576, 0, 1.0)],
)
def test_the_rank_and_the_noise_are_found(rows: int, columns: int, rank: int, noise: float) -> None:
    matrix = noisy(rows, columns, rank, noise)
    assert vbmf.rank(matrix) == vbmf.rank(matrix.T) == rank
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    assert math.sqrt(vbmf.noise(squares, columns)) == pytest.approx(noise, rel=0.02)


def test_scale_does_not_matter() -> None:
    matrix = noisy(30, 90, 4, 0.2)
    assert vbmf.rank(1e-6 * matrix) == vbmf.rank(1e6 * matrix) == 4


def test_without_noise_every_component_stands_out_and_of_nothing_none() -> None:
    assert vbmf.rank(noisy(20, 50, 3, 0.0)) == 3
    assert vbmf.rank(np.zeros((4, 9))) == 0


def test_a_component_must_exceed_the_threshold_of_the_noise() -> None:
    """Unit noise, L = M: t = 2.5129, x = 3.5129 (1 + 1 / 2.5129) = 4.9109, so g^2 > 4.9109 M."""
    draw = np.random.default_rng(1)
    u, s, v = np.linalg.svd(draw.standard_normal((200, 200)))
    for square, found in ((4.6, 0), (5.4, 1)):
        s[0] = math.sqrt(square * 200)
        assert vbmf.rank((u * s) @ v) == found
