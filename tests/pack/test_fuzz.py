"""Packed files that were tampered with: one clear line, or the right answer; never a crash, a hang, or much memory."""

from __future__ import annotations

import time
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import mutated, outcome
from laconic.pack import container
from tests.pack.files import small

SMALL = small()
PACKED = container.pack(SMALL, ".onnx").content


@settings(max_examples=2000, deadline=None, database=None, derandomize=True)
@given(st.integers(0, 2**32), st.sampled_from([True, False, False, False]))
def test_mutated_files(seed: int, mended: bool) -> None:
    """With the check sum put right the mutation is met by the decoder itself."""
    assert outcome(mutated(PACKED, seed, mended), SMALL) in ("refused", "right")


def test_most_mutations_are_met_by_the_decoder() -> None:
    found = [outcome(mutated(PACKED, seed, True), SMALL) for seed in range(60)]
    assert found.count("refused") > 40


def test_memory_and_time_are_bounded_by_what_is_declared() -> None:
    """A file that decodes to as much as its size allows, of whatever its bytes mean."""
    before = len(PACKED)
    most = container.RATIO * before + container.ALLOWANCE
    tracemalloc.start()
    began = time.process_time()
    for seed in range(12):
        outcome(mutated(PACKED, seed, True), SMALL)
    seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < container.memory_bytes(most)
    assert seconds < 60
