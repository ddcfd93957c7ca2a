"""The weights of an ONNX file are found in it, and their places again in what is left of it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from laconic.pack.digits import Digits, from_digits, to_digits
from laconic.pack.hints import layouts
from laconic.pack.onnx_parts import MalformedError, parts, places
from laconic.pack.tensors import Layout, Segment
from tests.pack.files import layer, small

SMALL = small()


def cut(content: bytes) -> tuple[bytes, list[bytes]]:
    left, taken, at = b"", [], 0
    for part in parts(content):
        left += content[at : part.at]
        taken.append(content[part.at : part.at + part.size])
        at = part.at + part.size
    return left + content[at:], taken


def test_the_weights_are_those_that_onnx_reads() -> None:
    tensors = {t.name: t for t in onnx.load_model_from_string(SMALL).graph.initializer}
    found = {part.name.decode(): part for part in parts(SMALL)}
    assert set(found) == {name for name, t in tensors.items() if t.data_type != onnx.TensorProto.INT64}
    for name, part in found.items():
        assert SMALL[part.at : part.at + part.size] == tensors[name].raw_data
        assert (part.dims, part.kind) == (tuple(tensors[name].dims), tensors[name].data_type)


def test_the_places_are_found_in_what_is_left() -> None:
    left, taken = cut(SMALL)
    assert len(left) + sum(map(len, taken)) == len(SMALL)
    whole, at = b"", 0
    for place, payload in zip(places(left, len(SMALL)), taken, strict=True):
        assert place.size == len(payload)
        whole += left[at : place.at] + payload
        at = place.at
    assert whole + left[at:] == SMALL


@pytest.mark.parametrize("content", [b"\x07", b"\x3a\x7f", b"\x3a", b"\xff" * 11, SMALL[:-1], SMALL + b"\x08"])
def test_what_is_no_message_is_refused(content: bytes) -> None:
    with pytest.raises(MalformedError):
        parts(content)


def test_a_weight_that_is_too_small_or_of_odd_size_stays() -> None:
    assert parts(layer(np.ones(3, np.int8))) == []
    broken = onnx.load_model_from_string(layer(np.ones(4, np.float32)))
    broken.graph.initializer[0].raw_data = b"\0" * 15
    assert parts(broken.SerializeToString()) == []


# -------------------------------------------------------------------------------------------------------------- digits


@given(
    st.sampled_from([(1, 2), (1, 4), (1, 16), (1, 256), (2, 3), (2, 5), (2, 256), (4, 7), (4, 31)]),
    st.integers(0, 255),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_digits_come_back(form: tuple[int, int], origin: int, twos: bool, seed: int) -> None:
    width, base = form
    digits = Digits(width, base, origin % base, twos and base % 2 == 0)
    numbers = np.random.default_rng(seed).integers(0, base**digits.digits, 20).astype(f"<u{width}")
    values = to_digits(numbers.tobytes(), digits)
    assert values is not None
    assert values.shape == (20 * digits.digits,)
    assert np.abs(values).max() <= digits.top
    assert from_digits(values, digits) == numbers.tobytes()


def test_digits_are_the_integers_that_were_stored() -> None:
    codes = np.array([-128, -1, 0, 1, 127], np.int8)
    found = to_digits(codes.tobytes(), Digits(1, 256, 128, twos=True))
    assert found is not None
    np.testing.assert_array_equal(found, codes)
    found = to_digits(bytes([0x9F]), Digits(1, 16, 8, twos=True))  # the first of two int4 is in the lower half
    assert found is not None
    assert found.tolist() == [-1, -7]


def test_numbers_that_are_no_digits() -> None:
    assert to_digits(np.array([3**10], np.uint16).tobytes(), Digits(2, 3, 1, twos=False)) is None
    assert from_digits(np.array([2] + [0] * 9, np.int16), Digits(2, 3, 1, twos=False)) is None


# --------------------------------------------------------------------------------------------------------------- hints


def test_the_graph_tells_what_weights_are_made_of() -> None:
    found = layouts(SMALL)
    assert found["fc.weight"] == [Layout(Digits(1, 256, 128, twos=True))]
    assert found["short"] == [Layout(Digits(1, 16, 8, twos=True))]
    assert Layout(Digits(1, 16, 8, twos=False)) in found["blocks"]
    assert found["codes"] == [Layout(Digits(2, 3, 1, twos=False), (Segment(16, 144, 9),))]
    assert found["conv.weight"] == []


def test_a_split_gives_each_layer_its_matrix() -> None:
    """As :mod:`laconic.runtime.onnx_codes` stores the codes of several layers."""
    helper = onnx.helper
    codes = np.zeros((20, 1), np.uint16)
    constants = {
        "codes": codes, "powers": 3 ** np.arange(10, dtype=np.int32), "base": np.array(3, np.int32),
        "one": np.array(1, np.int32), "flat": np.array([-1]), "sizes": np.array([144, 50, 6]),
        "first": np.array([4, 4, 3, 3]), "second": np.array([5, 10]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Cast", ["codes"], ["a"], to=onnx.TensorProto.INT32),
        helper.make_node("Div", ["a", "powers"], ["b"]),
        helper.make_node("Mod", ["b", "base"], ["c"]),
        helper.make_node("Sub", ["c", "one"], ["d"]),
        helper.make_node("Reshape", ["d", "flat"], ["e"]),
        helper.make_node("Split", ["e", "sizes"], ["f", "g", "h"]),
        helper.make_node("Reshape", ["f", "first"], ["i"]),
        helper.make_node("Reshape", ["g", "second"], ["j"]),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    content = helper.make_model(helper.make_graph(nodes, "g", [], [], tensors)).SerializeToString()
    segments = (Segment(4, 36, 9), Segment(5, 10, 1), Segment(1, 6, 1))
    assert layouts(content)["codes"] == [Layout(Digits(2, 3, 0, twos=False), segments)]


def test_no_hints_for_what_is_no_model() -> None:
    assert layouts(b"\xff\xff") == {}
