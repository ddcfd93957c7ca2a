from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from laconic.proof.sequence import fixed_sequence


@pytest.mark.parametrize(
    ("p_values", "passed"),
    [
        ([], []),
        ([0.05, 0.01, 0.3], [0, 1]),
        ([0.06, 0.001, 0.001], []),
        ([0.01, 0.2, 0.01], [0]),
        ([0.0, 0.0], [0, 1]),
    ],
)
def test_passes_until_the_first_failure(p_values, passed):
    assert fixed_sequence(p_values, 0.05) == passed


def test_any_wrong_rejection_is_as_rare_as_alpha():
    """Three true effects, then five candidates without one."""
    rng = np.random.default_rng(2)
    p = rng.uniform(size=(4000, 8))
    p[:, :3] *= 1e-4
    wrong = sum(len(fixed_sequence(row.tolist(), 0.1)) > 3 for row in p)
    assert stats.binom.ppf(0.001, 4000, 0.1) <= wrong <= stats.binom.ppf(0.999, 4000, 0.1)


@pytest.mark.parametrize("bad", [[0.1, float("nan")], [-0.1], [1.1]])
def test_refuses_what_is_not_a_p_value(bad):
    with pytest.raises(ValueError, match=r"p-values are in 0\.\.1"):
        fixed_sequence(bad, 0.05)


@pytest.mark.parametrize("alpha", [0.0, 1.0, float("nan")])
def test_refuses_a_bad_alpha(alpha):
    with pytest.raises(ValueError, match="alpha is a probability"):
        fixed_sequence([0.1], alpha)
