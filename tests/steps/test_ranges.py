"""Ranges from histograms, against the same thing done by brute force on the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.steps.quantize.ranges import (
    PERCENTILE,
    RANGES,
    WEIGHT_SCALES,
    Histogram,
    affine,
    entropy,
    minmax,
    mse,
    percentile,
    symmetric,
)


def histogram(values: np.ndarray, bins: int = 2048) -> Histogram:
    counts, _ = np.histogram(values, bins, (values.min(), values.max()))
    return Histogram(float(values.min()), float(values.max()), counts.astype(np.float64))


def values(kind: str, n: int = 20_000) -> np.ndarray:
    rng = np.random.default_rng(4)
    return {
        "normal": rng.standard_normal(n),
        "relu": rng.standard_normal(n).clip(0),
        "shifted": rng.standard_normal(n) + 3,
        "negative": -rng.random(n) - 1,
        "outlier": np.append(rng.standard_normal(n), [100.0]),
        "heavy": rng.standard_cauchy(n),
        "relu6": (rng.standard_normal(n) * 4).clip(0, 6),
    }[kind]


KINDS = ["normal", "relu", "shifted", "negative", "outlier", "heavy", "relu6"]


def error(x: np.ndarray, low: float, high: float, levels: int) -> float:
    """The mean squared error of quantizing the values with this range."""
    scale, zero = affine(low, high, levels)
    return float(np.square(x - (np.clip(np.rint(x / scale) + zero, 0, levels) - zero) * scale).mean())


def test_centres_of_bins() -> None:
    assert Histogram(-1.0, 1.0, np.zeros(4)).centres.tolist() == [-0.75, -0.25, 0.25, 0.75]


@pytest.mark.parametrize("kind", KINDS)
def test_minmax_is_what_was_seen(kind: str) -> None:
    x = values(kind)
    assert minmax(histogram(x), 255) == (x.min(), x.max())


@pytest.mark.parametrize("kind", KINDS)
def test_percentile_leaves_out_as_much_as_it_says(kind: str) -> None:
    x = values(kind)
    found = histogram(x)
    low, high = percentile(found, 255)
    width = (found.high - found.low) / len(found.counts)
    tail = (1 - PERCENTILE) / 2
    assert low == pytest.approx(np.quantile(x, tail, method="inverted_cdf"), abs=1.001 * width)
    assert high == pytest.approx(np.quantile(x, 1 - tail, method="inverted_cdf"), abs=1.001 * width)
    outside = ((x < low - 1e-9) | (x > high + 1e-9)).sum()
    assert outside <= (1 - PERCENTILE) * len(x) + 1e-9


def test_percentile_cuts_an_outlier() -> None:
    low, high = percentile(histogram(values("outlier", 100_000)), 255)
    assert -6 < low < -3
    assert 3 < high < 6


def test_percentile_of_few_values_is_everything() -> None:
    x = np.array([-1.0, 0.0, 2.0])
    assert percentile(histogram(x, 16), 255) == (-1.0, 2.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", [15, 255])
def test_mse_is_the_best_of_the_shrunk_ranges(kind: str, levels: int) -> None:
    x = values(kind)
    low, high = mse(histogram(x), levels)
    shrinks = np.linspace(1.0, 0.2, 80)
    best = min(error(x, x.min() * s, x.max() * s, levels) for s in shrinks)
    assert error(x, low, high, levels) <= best * 1.02 + 1e-12, "bins stand for their values"
    assert error(x, low, high, levels) <= error(x, x.min(), x.max(), levels) * 1.02


def test_mse_shrinks_where_values_are_rare() -> None:
    x = values("outlier")
    assert mse(histogram(x), 15)[1] < 0.5 * x.max()
    assert mse(histogram(values("relu6")), 255)[1] > 5.9, "many values lie at the clamp"


def divergence(counts: np.ndarray, first: int, last: int, codes: int) -> float:
    """KL(P || Q) as ONNX Runtime's calibrator goes about it, bin by bin."""
    inside = counts[first:last]
    p, q = inside.copy(), np.zeros(len(inside))
    p[0] += counts[:first].sum()
    p[-1] += counts[last:].sum()
    for code in range(codes):
        bins = [i for i in range(len(inside)) if i * codes // len(inside) == code]
        alive = [i for i in bins if p[i] > 0]
        for i in alive:
            q[i] = inside[bins].sum() / len(alive)
    return float(scipy.stats.entropy(p, np.maximum(q / q.sum(), 1e-10)))


@pytest.mark.parametrize("kind", ["normal", "relu", "heavy"])
def test_entropy_is_the_least_divergence(kind: str) -> None:
    found = histogram(values(kind), 256)
    width = (found.high - found.low) / 256
    low, high = entropy(found, 15)
    ends = round((low - found.low) / width), round((high - found.low) / width)
    zero = -found.low / width
    tried = [
        divergence(found.counts, int(zero - zero * k), int(np.ceil(zero + (256 - zero) * k)), 16)
        for k in np.linspace(1, 16 / 256, 160)
    ]
    assert divergence(found.counts, *ends, 16) == pytest.approx(min(tried), rel=1e-6)
    assert min(tried) < 0.95 * tried[0], "not everything that was seen"


@pytest.mark.parametrize("qmax", [1, 7, 127])
def test_weight_scales_of_least_error(qmax: int) -> None:
    """Beside a search of 2,000 scales for each channel."""
    torch.manual_seed(0)
    rows = torch.stack([torch.randn(400), torch.rand(400) - 0.5, torch.randn(400) ** 3, torch.zeros(400)])

    def error(row: torch.Tensor, scale: float) -> float:
        return float((row - (row / scale).round().clamp(-qmax, qmax) * scale).square().sum())

    found = WEIGHT_SCALES["mse"](rows, qmax)
    assert float(found[3]) == 0
    for row, scale in zip(rows[:3], found[:3], strict=True):
        largest = float(row.abs().max()) / qmax
        best = min(error(row, largest * k / 2000) for k in range(20, 2001))
        assert error(row, float(scale)) <= 1.1 * best
    assert torch.allclose(WEIGHT_SCALES["minmax"](rows, qmax) * qmax, rows.abs().amax(1))


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_range_lies_within_what_was_seen(name: str, kind: str) -> None:
    x = values(kind)
    low, high = RANGES[name](histogram(x), 255)
    assert min(x.min(), 0) - 1e-9 <= low < high <= max(x.max(), 0) + 1e-9
    assert np.isfinite([low, high]).all()


@settings(max_examples=300, deadline=None)
@given(
    st.floats(-1e6, 1e6),
    st.floats(-1e6, 1e6),
    st.sampled_from([3, 15, 127, 255]),
)
def test_affine_covers_the_range_and_holds_zero(a: float, b: float, levels: int) -> None:
    low, high = min(a, b), max(a, b)
    scale, zero = affine(low, high, levels)
    assert scale > 0
    assert 0 <= zero <= levels
    bottom, top = -zero * scale, (levels - zero) * scale
    width = max(high, 0.0) - min(low, 0.0)
    if width >= 1e-30:
        slack = 1e-9 * width + (0.5 * scale if zero in (0, levels) else 0)  # an end rounded away is lost for good
        assert bottom <= min(low, 0.0) + slack
        assert top >= max(high, 0.0) - slack
        assert scale <= width / levels * 1.5, "not much wider than needed"


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero"),
    [
        (0.0, 6.0, 6 / 255, 0),
        (0.0, 255.0, 1.0, 0),
        (-255.0, 0.0, 1.0, 255),
        (-128.0, 127.0, 1.0, 128),
        (2.0, 255.0, 1.0, 0),
        (-255.0, -1.0, 1.0, 255),
        (0.0, 0.0, 1.0, 0),
        (-1.0, 254.0, 1.0, 1),
    ],
)
def test_affine_by_hand(low: float, high: float, scale: float, zero: int) -> None:
    assert affine(low, high, 255) == (pytest.approx(scale, rel=1e-12), zero)


@given(st.floats(-100, 0), st.floats(0, 100))
def test_a_symmetric_grid_has_zero_in_its_middle_and_reaches_both_ends(low: float, high: float) -> None:
    scale, middle = symmetric(low, high, 255)
    assert middle == 128
    reach = max(-low, high)
    assert scale == pytest.approx(reach / 127) if reach > 1e-30 else scale == 1.0


def test_entropy_counts_the_codes_that_lie_on_the_range() -> None:
    """Of 16 symmetric codes 8 lie on values of one sign."""
    found = histogram(values("relu"))
    assert entropy(found, 15, symmetric) == entropy(found, 7, affine)
