"""A packed file decodes to the very bytes that were packed, is small, and says what is wrong with it if it does not."""

from __future__ import annotations

import hashlib
import lzma
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from laconic.errors import ModelError
from laconic.pack import container
from laconic.pack.container import pack, unpack
from tests.pack.files import layer, small, weights

SMALL = small()
PACKED = pack(SMALL, ".onnx").content


def checked(body: bytes) -> bytes:
    """``body`` with the check sum that belongs to it."""
    return body + zlib.crc32(body).to_bytes(4, "little")


CONTENTS: dict[str, tuple[bytes, str]] = {
    "every kind of weight": (SMALL, ".onnx"),
    "nothing": (b"", ".onnx"),
    "one byte": (b"\x07", ".bin"),
    "no ONNX": (b"<net>" * 40, ".onnx"),
    "ONNX, cut off": (SMALL[:-7], ".onnx"),
    "ONNX in another file": (SMALL, ".tflite"),
    "no suffix": (SMALL[:99], ""),
    "text": (b"all work and no play makes jack a dull boy " * 30, ".xml"),
    "noise": (np.random.default_rng(0).bytes(5000), ".pte"),
    "zeros, far smaller than a packed file may be": (bytes(2**24), ".bin"),
    "a weight of zeros": (layer(np.zeros((64, 64, 3, 3), np.int8)), ".onnx"),
    "a weight of one number": (layer(np.full((1, 300), -128, np.int8)), ".onnx"),
    "an empty weight": (layer(np.zeros((0, 4), np.float32)), ".onnx"),
    "a number": (layer(np.array(3.5, np.float32)), ".onnx"),
    "special floats": (layer(np.array([np.nan, np.inf, -0.0, 1e-45] * 9, np.float32)), ".onnx"),
    "float16": (layer(np.random.default_rng(0).normal(size=(8, 90)).astype(np.float16)), ".onnx"),
    "int16": (layer(weights((7, 11), 30000).astype(np.int16)), ".onnx"),
    "all of uint8": (layer(np.arange(256, dtype=np.uint8).repeat(3)), ".onnx"),
}


@pytest.mark.parametrize(("content", "suffix"), CONTENTS.values(), ids=list(CONTENTS))
def test_what_was_packed_comes_back(content: bytes, suffix: str) -> None:
    found = pack(content, suffix)
    back = unpack(found.content)
    assert (back.content, back.suffix) == (content, suffix)
    assert abs(back.payload - found.payload) <= 4  # the coder reads four bytes ahead of what it has decoded
    assert len(content) <= container.RATIO * len(found.content) + container.ALLOWANCE


def test_each_weight_is_coded_by_what_suits_it() -> None:
    rows = {row.name: row for row in pack(SMALL, ".onnx").rows}
    assert "shape" not in rows  # int64 stays in the structure
    assert rows["codes"].method == rows["blocks"].method == "integers in context"
    assert rows["conv.weight"].method == rows["fc.bias"].method == "bytes in context"
    assert rows["codes"].packed < 2304 * 1.585 / 8 / 2  # half of log2(3) bits for each of its 2304 weights
    assert {rows[name].bytes for name in ("conv.weight", "short")} == {4 * 108, 18}
    noise = layer(np.random.default_rng(0).integers(0, 2**31, 4000).astype(np.int32))
    assert pack(noise, ".onnx").rows[0].packed <= 16_100


def test_the_payload_and_the_structure_are_the_file() -> None:
    found = pack(SMALL, ".onnx")
    assert abs(sum(row.packed for row in found.rows) - found.payload) <= 4
    assert 200 < len(found.content) - found.payload < 900
    assert pack(b"text" * 100, ".xml").payload == 0


def test_weights_are_smaller_than_their_entropy_and_than_xz() -> None:
    """Filters of different scale: what is around a weight tells how large it is."""
    scale = np.exp(0.6 * np.random.default_rng(1).normal(size=(64, 1)))
    codes = np.clip(np.rint(weights((64, 576), 20) * scale), -127, 127).astype(np.int8)
    content = layer(codes)
    shares = np.unique(codes, return_counts=True)[1] / codes.size
    entropy_bytes = -(shares * np.log2(shares)).sum() * codes.size / 8
    packed = len(pack(content, ".onnx").content)
    assert packed < 0.97 * entropy_bytes
    assert packed < 0.97 * len(lzma.compress(content, preset=9))


def test_the_format_is_what_it_was() -> None:
    """Files that were packed stay readable: the same bytes on every machine, and in every version that says 1."""
    assert hashlib.sha256(PACKED).hexdigest() == FORMAT_1


def test_decoding_needs_neither_torch_nor_onnx(tmp_path: Path) -> None:
    path = tmp_path / "model.lac"
    path.write_bytes(PACKED)
    code = (
        "import sys; sys.modules['torch'] = sys.modules['onnx'] = None\n"
        "from laconic.pack.container import unpack_file\n"
        f"import pathlib; sys.stdout.buffer.write(unpack_file(pathlib.Path({str(path)!r})).content)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=dict(os.environ))
    assert done.stdout == SMALL


# ------------------------------------------------------------------------------------------------------------- refused


def changed(at: int, value: int) -> bytes:
    body = bytearray(PACKED[:-4])
    body[at] = value
    return checked(bytes(body))


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "is no packed model: got b'', wanted a file that begins"),
    "another file": (lambda: SMALL, "is no packed model"),
    "the magic alone": (lambda: PACKED[:4], "is damaged: its check sum does not fit; get it again"),
    "truncated": (lambda: PACKED[:-9], "its check sum does not fit"),
    "extended": (lambda: PACKED + b"\0", "its check sum does not fit"),
    "a bit": (lambda: PACKED[:90] + bytes([PACKED[90] ^ 1]) + PACKED[91:], "its check sum does not fit"),
    "a wrong check sum": (lambda: PACKED[:-1] + bytes([PACKED[-1] ^ 128]), "its check sum does not fit"),
    "newer": (lambda: changed(4, 2), "was packed by a newer laconic: got version 2, wanted at most 1; update laconic"),
    "version 0": (lambda: changed(4, 0), "is damaged"),
    "a flag that there is not": (lambda: changed(5, 2), "states a size that cannot be"),
    "a wrong hash": (lambda: changed(12, PACKED[12] ^ 1), "what it decodes to is not what was packed"),
    "a bit, and the check sum of it": (lambda: changed(70, PACKED[70] ^ 1), "is damaged"),
    "a size that lies": (lambda: checked(PACKED[:7] + b"\xff\xff\xff\xff\x07" + PACKED[9:-4]), "states a size that"),
    "a size that ends nowhere": (lambda: checked(PACKED[:7] + b"\xff" * 9), "is damaged"),
    "cut, and the check sum of it": (lambda: checked(PACKED[:-200]), "is damaged"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=list(REFUSED))
def test_what_is_wrong_is_said(make: Callable[[], bytes], message: str) -> None:
    with pytest.raises(ModelError, match=message) as raised:
        unpack(make(), "net.lac")
    assert str(raised.value).startswith("net.lac ")
    assert "\n" not in str(raised.value)


def test_a_declared_size_is_refused_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laconic.pack.general.read", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ModelError, match=r"got 2147483647 bytes, .* wanted at most \d{7};"):
        unpack(checked(PACKED[:7] + b"\xff\xff\xff\xff\x07" + PACKED[9:-4]))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no such packed model: got .*net\.lac, wanted a \.lac file"):
        container.unpack_file(tmp_path / "net.lac")


def test_a_suffix_that_cannot_be_written() -> None:
    with pytest.raises(ModelError, match="a file that cannot be packed"):
        pack(b"", ".ö")


FORMAT_1 = "e37d27960998e0d1321d64366ba7e742ffed63e25a38b04f8aaaab06388af14a"
