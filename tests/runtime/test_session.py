"""Chunks and padding, the same for every runtime."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.runtime.session import Session


class Recorder:
    """Doubles its input, adds its inputs, and remembers what it was given."""

    def __init__(self, batch: int) -> None:
        self.calls: list[dict[str, np.ndarray]] = []
        self.session = Session(self.run, ("a", "b"), ("double", "sum"), batch)

    def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.calls.append({name: x.copy() for name, x in inputs.items()})
        return [inputs["a"] * 2, inputs["a"].sum(1) + inputs["b"]]


def samples(n: int) -> dict[str, np.ndarray]:
    return {"a": np.arange(3.0 * n).reshape(n, 3), "b": np.arange(float(n)) * 100}


@given(st.integers(1, 20), st.integers(1, 8))
def test_every_sample_once_and_in_order(n: int, batch: int) -> None:
    recorder, inputs = Recorder(batch), samples(n)
    outputs = recorder.session(inputs)
    assert np.array_equal(outputs["double"], inputs["a"] * 2)
    assert np.array_equal(outputs["sum"], inputs["a"].sum(1) + inputs["b"])
    assert all(len(x) == batch for call in recorder.calls for x in call.values()), "always the file's own batch"
    assert len(recorder.calls) == -(-n // batch)


def test_the_last_chunk_is_padded_with_its_last_sample() -> None:
    recorder = Recorder(4)
    recorder.session(samples(6))
    assert recorder.calls[1]["b"].tolist() == [400, 500, 500, 500]
    assert recorder.calls[1]["a"].flags.c_contiguous


def test_a_whole_batch_goes_straight_through() -> None:
    given_inputs = samples(4)
    seen: list[object] = []

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        seen.append(inputs)
        return [inputs["a"]]

    found = Session(run, ("a", "b"), ("y",), 4)(given_inputs)
    assert seen[0] is given_inputs, "nothing is copied in what latency is timed on"
    assert found["y"] is given_inputs["a"]


def test_one_input_goes_by_position() -> None:
    session = Session(lambda inputs: [inputs["x"] + 1], ("x",), ("y",), 2)
    assert session({"picture": np.zeros((3, 1))})["y"].tolist() == [[1], [1], [1]]


def test_outputs_and_names_must_fit() -> None:
    session = Session(lambda inputs: [inputs["x"], inputs["x"]], ("x",), ("y",), 2)
    for n in (2, 3):
        with pytest.raises(ValueError, match="zip"):
            session({"x": np.zeros((n, 1))})
