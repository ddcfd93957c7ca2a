"""The coders by themselves: what they write is as long as theory says, and comes back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.pack import elements, huffman, numbers, text
from laconic.pack.arithmetic import (
    FULL,
    PENDING,
    POSITION,
    RANGE,
    Coder,
    code_bit,
    code_bits,
    decide,
    decoder,
    encoder,
    finished,
    new_model,
)  # fmt: skip
from laconic.pack.around import Around, shape_of
from laconic.pack.dense import code_dense, new_dense
from laconic.pack.integers import code_integers, new_integers
from laconic.pack.tensors import Stream
from tests.pack.files import weights


def written(coder: Coder) -> bytes:
    content = finished(coder)
    assert not coder.state[FULL], "the coder ran out of room"
    return content


# --------------------------------------------------------------------------------------------------- arithmetic coding


@pytest.mark.parametrize("p", [1, 300, 32768, 65000, 65535])
def test_known_probabilities_cost_their_entropy(p: int) -> None:
    share = p / 65536
    bits = np.random.default_rng(0).random(10_000) < share
    coder = encoder(10_000)
    for bit in bits:
        code_bit(int(bit), p, coder)
    entropy = -sum(np.log2(share if bit else 1 - share) for bit in bits) / 8
    content = written(coder)
    assert len(content) == pytest.approx(entropy, rel=0.01, abs=5)
    reader = decoder(content)
    assert [code_bit(0, p, reader) for _ in bits] == bits.astype(int).tolist()


def test_the_end_is_short_and_zeros_may_follow() -> None:
    for n in range(60):
        coder = encoder(100)
        bits = np.random.default_rng(n).integers(0, 2, n)
        for bit in bits:
            code_bit(int(bit), 32768, coder)
        content = written(coder)
        assert len(content) <= n / 8 + 2
        reader = decoder(content + b"\0" * (n % 5))
        assert [code_bit(0, 32768, reader) for _ in range(n)] == bits.tolist()


@given(
    st.lists(st.tuples(st.sampled_from([1, 9, 32768, 65527, 65535]), st.booleans(), st.integers(1, 15)), max_size=200)
)
def test_likely_and_unlikely_bits_come_back_among_plain_ones(choices: list[tuple[int, bool, int]]) -> None:
    """What a carry goes through: long runs of the likelier bit, and numbers of ones."""
    coder = encoder(4000)
    for p, bit, count in choices:
        code_bit(int(bit), p, coder)
        code_bits((1 << count) - 1 if bit else 0, count, coder)
    reader = decoder(written(coder))
    for p, bit, count in choices:
        assert code_bit(0, p, reader) == bit
        assert code_bits(0, count, reader) == ((1 << count) - 1 if bit else 0)


def test_a_carry_goes_through_units_of_ones() -> None:
    """The interval stays around a number with many zeros behind it, so that units of ones wait; then it goes above."""
    coder, target, bits = encoder(1000), 1 << 46, []
    for _ in range(150):
        width = int(coder.state[RANGE])
        part = (width * 30000) >> 16
        bits.append(int(target < part))
        target -= 0 if bits[-1] else part
        code_bit(bits[-1], 30000, coder)
        if coder.state[RANGE] not in (part, width - part):
            target <<= 16
    assert coder.state[PENDING] > 3
    bits += [0] * 60
    for bit in bits[150:]:
        code_bit(bit, 30000, coder)
    content = written(coder)
    assert content[:6] == b"\x40\0\0\0\0\0"
    reader = decoder(content)
    assert [code_bit(0, 30000, reader) for _ in bits] == bits


def test_a_coder_that_has_no_room_says_so() -> None:
    coder = encoder(3)
    for k in range(100):
        code_bit(k & 1, 32768, coder)
    assert coder.state[FULL] == 1
    assert coder.state[POSITION] > 3


def test_units_that_are_kept_back_count_as_written() -> None:
    """Else what writes units of ones alone seems to cost nothing, and is chosen."""
    stream = Stream.writing()

    def ones(trial: Stream) -> None:
        for _ in range(1000):
            code_bits(32767, 15, trial.coder)

    assert stream.attempt(ones, 1000) is None
    trial = stream.attempt(ones, 2000)
    assert trial is not None
    assert stream.append(trial) == pytest.approx(1000 * 15 / 8, abs=8)
    assert len(stream.finished()) == pytest.approx(1000 * 15 / 8, abs=8)
    reader = decoder(stream.finished())
    assert all(code_bits(0, 15, reader) == 32767 for _ in range(1000))


def test_unknown_probabilities_are_learned_and_the_better_context_is_trusted() -> None:
    """Two contexts, of which one tells the bit and the other nothing."""
    random = np.random.default_rng(0)
    told, noise = random.integers(0, 2, (2, 8000))
    bits = np.where(random.random(8000) < 0.02, 1 - told, told)
    model, coder = new_model(4, 1), encoder(8000)
    for bit, a, b in zip(bits, told, noise, strict=True):
        model.at[0], model.at[1] = a, 2 + b
        decide(int(bit), 2, 0, 0, model, coder)
    entropy = -(0.02 * np.log2(0.02) + 0.98 * np.log2(0.98)) * 8000 / 8
    assert len(written(coder)) < 1.15 * entropy
    assert model.weights[0] > 4 * abs(model.weights[1])


# ------------------------------------------------------------------------------------------------------------ integers


CODERS = {"integers": (code_integers, new_integers), "dense": (code_dense, new_dense)}


def coded(values: np.ndarray, rows: int, kernel: int = 1, by: str = "integers") -> int:
    """The bytes that integers take; they came back."""
    code, new = CODERS[by]
    shape = shape_of(rows, values.size // rows, kernel, max(int(np.abs(values).max()), 1))
    given, coder = values.ravel().astype(np.int16), encoder(2 * values.size + 100)
    code(given.copy(), shape, Around.of(shape[1]), new(), coder)
    content = written(coder)
    found = np.zeros_like(given)
    code(found, shape, Around.of(shape[1]), new(), decoder(content))
    np.testing.assert_array_equal(found, given)
    return len(content)


def entropy_bytes(values: np.ndarray) -> float:
    shares = np.unique(values, return_counts=True)[1] / values.size
    return float(-(shares * np.log2(shares)).sum() * values.size / 8)


@pytest.mark.parametrize("by", list(CODERS))
@pytest.mark.parametrize("reach", [1, 2, 7, 15, 16, 60, 127, 255])
def test_integers_without_structure_cost_their_entropy(reach: int, by: str) -> None:
    values = weights((40, 500), reach)
    assert coded(values, 40, by=by) < 1.03 * entropy_bytes(values)


def test_what_is_around_a_weight_is_used() -> None:
    random = np.random.default_rng(0)
    inputs = np.where(random.random(64) < 0.2, 1, 0)  # of the others nothing is read
    values = weights((32, 64, 9), 7) * inputs[:, None]
    assert coded(values, 32, 9) < 0.75 * entropy_bytes(values)
    smooth = np.repeat(weights((64, 16), 15), 8, axis=1)  # neighbours are alike
    assert coded(smooth, 64) < 0.6 * entropy_bytes(smooth)


@pytest.mark.parametrize("by", list(CODERS))
def test_neighbours_in_a_kernel_are_used(by: str) -> None:
    """Each integer is large where the one above it in its kernel is; or has its sign; or where its column has one."""
    random = np.random.default_rng(0)
    first, signs = random.choice([1, 5], (64, 32, 1, 3)), random.choice([-1, 1], (64, 32, 3, 3))
    large = (first * signs).reshape(64, 288)
    assert coded(large, 64, 9, by) < 0.8 * entropy_bytes(large)
    alike = (7 * signs[:, :, :1] * np.ones((3, 1), np.int64)).reshape(64, 288)
    assert coded(alike, 64, 9, by) < 0.5 * entropy_bytes(alike)
    known = 7 * random.choice([-1, 1], (1, 64)) * np.ones((200, 1), np.int64)
    assert coded(known, 200, 1, by) < 0.3 * entropy_bytes(known)


@given(
    st.lists(st.integers(-255, 255), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(1, 9),
    st.sampled_from(list(CODERS)),
)
def test_any_integers_come_back(values: list[int], rows: int, kernel: int, by: str) -> None:
    coded(np.array(values * rows), rows, min(kernel, len(values)), by)


# ----------------------------------------------------------------------------------------------------- bytes and texts


@pytest.mark.parametrize("width", [1, 2, 4])
def test_any_bytes_come_back(width: int) -> None:
    for content in (np.random.default_rng(0).bytes(400), bytes(range(200)) * 2, bytes(400)):
        given = np.frombuffer(content, np.uint8).astype(np.int16)
        for noise in (0, 1):
            coder = encoder(1000)
            elements.code_elements(given.copy(), 400 // width, width, 10, noise, elements.new_elements(), coder)
            found, reader = np.zeros(400, np.int16), decoder(written(coder))
            elements.code_elements(found, 400 // width, width, 10, noise, elements.new_elements(), reader)
            np.testing.assert_array_equal(found, given)


def test_noise_is_found_where_it_is() -> None:
    floats = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    values = np.frombuffer(floats.tobytes(), np.uint8).astype(np.int16)
    assert elements.noise_in(values, 4) == 0b0011  # the lower bytes of the mantissa; not its highest bits, nor the sign
    assert elements.noise_in(values[:400], 4) == 0  # of so few nothing can be said


def test_texts_come_back_and_what_is_repeated_is_short() -> None:
    once = np.random.default_rng(0).bytes(300)
    sizes = []
    for content in (once, once * 5, b"conv1.weight" * 25, b""):
        given, coder = np.frombuffer(content, np.uint8).astype(np.int16), encoder(4000)
        text.code_text(given.copy(), len(given), text.no_matches(), np.zeros(7, np.int64), text.new_text(), coder)
        sizes.append(len(written(coder)))
        found, reader = np.zeros_like(given), decoder(written(coder))
        text.code_text(found, len(given), text.no_matches(), np.zeros(7, np.int64), text.new_text(), reader)
        np.testing.assert_array_equal(found, given)
    assert sizes[1] < sizes[0] + 60
    assert sizes[2] < 25


@given(st.lists(st.tuples(st.integers(0, 2**48 - 2), st.integers(0, numbers.KINDS - 1)), max_size=30))
def test_numbers_come_back(pairs: list[tuple[int, int]]) -> None:
    model, coder = numbers.new_numbers(), encoder(1000)
    for value, kind in pairs:
        numbers.code_number(value, kind, model, coder)
    model, reader = numbers.new_numbers(), decoder(written(coder))
    assert [numbers.code_number(0, kind, model, reader) for _, kind in pairs] == [value for value, _ in pairs]


# ------------------------------------------------------------------------------------------------------------- Huffman


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=60))
def test_huffman_lengths_are_a_code_within_a_bit_of_the_entropy(counts: list[int]) -> None:
    given_counts = np.array(counts)
    lengths = huffman.lengths_of(given_counts)
    used = given_counts > 0
    assert (lengths > 0).tolist() == used.tolist()
    if used.sum() > 1:
        assert sum(2.0 ** -lengths[used]) == 1
        shares = given_counts[used] / given_counts.sum()
        mean = (shares * lengths[used]).sum()
        assert -(shares * np.log2(shares)).sum() <= mean + 1e-9
        assert mean < -(shares * np.log2(shares)).sum() + 1


def test_huffman_codes_are_at_most_15_bits_long() -> None:
    lengths = huffman.lengths_of(np.array([int(1.7**k) for k in range(40)]))
    assert lengths.max() <= huffman.LONGEST
    assert (2.0**-lengths).sum() <= 1


def test_lengths_that_no_code_has() -> None:
    with pytest.raises(ValueError, match="no code has these lengths"):
        huffman.Code.of(np.array([1, 1, 2], np.int32))


@given(st.integers(0, 2**32), st.integers(0, 300), st.floats(0, 1))
def test_huffman_codes_come_back_with_runs_and_without(seed: int, size: int, density: float) -> None:
    random = np.random.default_rng(seed)
    values = np.where(random.random(size) < density, random.integers(0, 9, size), 4).astype(np.int16)
    runs, symbols = huffman.run_counts(values, 4, 9)
    code = huffman.Code.of(huffman.lengths_of(symbols))
    of_runs = huffman.Code.of(huffman.lengths_of(runs))
    coder = encoder(4000)
    assert huffman.code_runs(values.copy(), size, 4, of_runs, code, coder) == 0
    told = (runs * of_runs.lengths).sum() + (symbols * code.lengths).sum()
    content = written(coder)
    assert told / 8 - 1 <= len(content) <= told / 8 + 2  # the counts are those of what was coded
    found = np.zeros(size, np.int16)
    assert huffman.code_runs(found, size, 4, of_runs, code, decoder(content)) == 0
    np.testing.assert_array_equal(found, values)

    plain = huffman.Code.of(huffman.lengths_of(np.bincount(values, minlength=9)))
    coder = encoder(4000)
    huffman.code_symbols(values.copy(), size, plain, coder)
    assert huffman.code_symbols(found, size, plain, decoder(written(coder))) == 0
    np.testing.assert_array_equal(found, values)


def test_bits_that_are_no_code() -> None:
    code = huffman.Code.of(np.array([1, 0, 0], np.int32))
    assert huffman.code_symbols(np.zeros(4, np.int16), 4, code, decoder(b"\xff\xff")) in (0, -1)
    assert -1 in {huffman.code_symbols(np.zeros(4, np.int16), 4, code, decoder(bytes([b] * 4))) for b in (0, 255)}
