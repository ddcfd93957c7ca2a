"""The hash is the same everywhere, spreads evenly, and needs no number of 2^31 or more."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from laconic import hashing


def test_the_hash_that_files_are_made_with_never_changes() -> None:
    found = hashing.hashes(400_000)
    assert found[[0, 1, 46_336, 46_337, 399_999]].tolist() == [283810236, 1706989523, 2010384094, 1452567098, 501508233]


def test_by_hand() -> None:
    left, right = divmod(46_340, 46_337)
    for key in hashing.KEYS:
        left, right = right, (pow(right + key, 3, 46_337) + left) % 46_337
    assert hashing.hashes(46_341)[-1] == left * 46_337 + right


def test_no_two_places_have_one_hash() -> None:
    found = hashing.hashes(300_000)
    assert len(np.unique(found)) == len(found)
    assert found.min() >= 0
    assert found.max() < hashing.P**2 < 2**31


@pytest.mark.parametrize(("count", "entries"), [(30_000, 468), (235_200, 3_675), (235_200, 29_400), (400_000, 7)])
def test_every_number_and_sign_gets_its_share_and_neighbours_know_nothing(count: int, entries: int) -> None:
    places = hashing.places(count, entries)
    assert stats.chisquare(np.bincount(places, minlength=2 * entries)).pvalue > 1e-3
    signs, numbers = np.where(places < entries, 1, -1), places % entries
    for apart in (1, 2, 28, 300, 784):  # as far as weights of one row, of one column
        assert abs((signs[apart:] * signs[:-apart]).mean()) * np.sqrt(count) < 4
        met, expected = int((numbers[apart:] == numbers[:-apart]).sum()), count / entries
        assert abs(met - expected) < 4.5 * np.sqrt(expected) + 1
