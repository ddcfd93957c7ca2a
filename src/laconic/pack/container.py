"""The ``.lac`` file: a deployed file, entropy-coded, which it decodes to byte for byte (docs/format.md).

offset   bytes
0        4      89 4C 41 43
4        1      version, 1
5        1      1: the weights of an ONNX file are coded apart from its structure; 0: they are not
6        1      length of the suffix; 255 stands for ".onnx"
7        n      suffix, ASCII
         1-9    bytes of the decoded file, a varint
         1-9    bytes of the structure, a varint
         8      the first of the SHA-256 of the decoded file
         ...    the arithmetic coder's bytes: the structure, then the weights in its order
-4       4      CRC-32 of all bytes before, little-endian
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from laconic.errors import ModelError
from laconic.pack import general, tensors
from laconic.pack.arithmetic import AHEAD, POSITION
from laconic.pack.onnx_parts import MalformedError, Part, parts, places
from laconic.pack.package import PACKED
from laconic.pack.tensors import CorruptError, Layout, Stream

MAGIC, VERSION = b"\x89LAC", 1
RATIO, ALLOWANCE = 4096, 2**20
"""A packed file of n bytes decodes to at most RATIO * n + ALLOWANCE bytes; one that could be smaller is filled up."""
MOST_BYTES, MOST_PARTS = 2**31, 2**16
_TAIL, _CHECK = 4, 8
_ONNX = 255


@dataclass(frozen=True)
class Row:
    """A weight in a packed file: its ``name``, ``bytes`` before and ``packed``, and the ``method`` that coded it."""

    name: str
    bytes: int
    packed: int
    method: str


@dataclass(frozen=True)
class Packed:
    """A packed file: its ``content``; of its bytes the ``payload`` are the weights (codes, codebooks, scales, biases),
    the rest structure; ``rows`` say how each weight was coded."""

    content: bytes
    payload: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Unpacked:
    """A decoded file: its ``content`` and ``suffix``; ``payload`` as in :class:`Packed`."""

    content: bytes
    suffix: str
    payload: int


def memory_bytes(whole: int) -> int:
    """The memory that decoding takes at most, for a file that decodes to ``whole`` bytes: the models, and what a weight
    of one bit per code takes while it is decoded."""
    return 2**26 + 64 * whole


def pack(content: bytes, suffix: str) -> Packed:
    """Code ``content``, a file whose name ends on ``suffix``; raises :class:`ModelError` if it cannot be."""
    if len(content) > MOST_BYTES or not suffix.isascii() or len(suffix) >= _ONNX:
        raise ModelError(
            "a file that cannot be packed", got=f"{len(content)} bytes, suffix {suffix!r}",
            wanted=f"at most {MOST_BYTES} bytes and an ASCII suffix",
        )  # fmt: skip
    found = _weights(content, suffix)
    structure = b"".join(_between(content, found))
    head = MAGIC + bytes([VERSION, bool(found)]) + _suffix(suffix)
    head += _varint(len(content)) + _varint(len(structure)) + _check(content)
    known = _hints(content) if found else {}
    stream = Stream.writing()
    general.write(stream, structure)
    before = stream.size
    rows = []
    for part in found:
        payload, name = content[part.at : part.at + part.size], part.name.decode("utf-8", "replace")
        size, method = tensors.write(stream, payload, part, known.get(name, []))
        rows.append(Row(name, part.size, size, method))
    coded = stream.finished()
    least = -(-(len(content) - ALLOWANCE) // RATIO) - len(head) - _TAIL
    body = head + coded.ljust(least, b"\0")
    packed = body + zlib.crc32(body).to_bytes(_TAIL, "little")
    return Packed(packed, len(coded) - before if found else 0, tuple(rows))


def unpack(packed: bytes, name: str = "the file") -> Unpacked:
    """Decode a packed file; raises :class:`ModelError` unless the very file comes back that was packed."""
    head = _Head.read(packed, name)
    stream = Stream.reading(packed[head.size : -_TAIL])
    try:
        structure = general.read(stream, head.structure)
        before = int(stream.coder.state[POSITION])
        content = b"".join(_whole(structure, stream, head)) if head.apart else structure
    except (CorruptError, MalformedError) as error:
        raise ModelError(f"{name} is damaged: {error}", fix="get it again, or export it again") from error
    if _check(content) != head.check:
        raise ModelError(
            f"{name} is damaged: what it decodes to is not what was packed", fix="get it again, or export it again"
        )
    payload = len(packed) - head.size - _TAIL - (before - AHEAD) if head.apart else 0
    return Unpacked(content, head.suffix, payload)


def structure_of(content: bytes, suffix: str) -> bytes:
    """What a file is but for its weights."""
    return b"".join(_between(content, _weights(content, suffix)))


def pack_file(source: Path) -> Packed:
    """Code a file; what is returned was seen to decode to the very same bytes."""
    content = source.read_bytes()
    packed = pack(content, source.suffix)
    if unpack(packed.content).content != content:
        raise AssertionError(f"{source.name} does not come back from its packed form")
    return packed


def unpack_file(path: Path) -> Unpacked:
    """Decode the file ``path``; raises :class:`ModelError`."""
    if not path.is_file():
        raise ModelError("no such packed model", got=str(path), wanted=f"a {PACKED} file")
    return unpack(path.read_bytes(), str(path))


def _check(content: bytes) -> bytes:
    """What tells a file that was decoded wrongly. It guards against accidents: who forges a file can forge this with
    it, so the whole hash is in the manifest of the package, not here."""
    return hashlib.sha256(content).digest()[:_CHECK]


def _weights(content: bytes, suffix: str) -> list[Part]:
    """The weights of an ONNX file; none if it is something else."""
    if suffix != ".onnx":
        return []
    try:
        found = parts(content)
    except MalformedError:
        return []
    return found if len(found) <= MOST_PARTS else []


def _hints(content: bytes) -> dict[str, list[Layout]]:
    from laconic.pack.hints import layouts  # it brings onnx, which decoding does not need

    return layouts(content)


def _between(content: bytes, found: list[Part]) -> Iterator[bytes]:
    at = 0
    for part in found:
        yield content[at : part.at]
        at = part.at + part.size
    yield content[at:]


def _whole(structure: bytes, stream: Stream, head: _Head) -> Iterator[bytes]:
    """The structure with its weights in their places."""
    found = places(structure, head.whole)
    if len(found) > MOST_PARTS or len(structure) + sum(part.size for part in found) != head.whole:
        raise CorruptError("its structure does not fit its size")
    at = 0
    for part in found:
        yield structure[at : part.at]
        yield tensors.read(stream, part)
        at = part.at
    yield structure[at:]


@dataclass(frozen=True)
class _Head:
    """What stands in front of the coder's bytes, ``size`` bytes."""

    apart: bool
    suffix: str
    whole: int
    structure: int
    check: bytes
    size: int

    @classmethod
    def read(cls, packed: bytes, name: str) -> _Head:
        """Read and check it, and the check sum, before anything is decoded."""
        if not packed.startswith(MAGIC):
            raise ModelError(f"{name} is no packed model", got=repr(packed[:4]), wanted=f"a file that begins {MAGIC!r}")
        damaged = ModelError(f"{name} is damaged: its check sum does not fit", fix="get it again, or export it again")
        if len(packed) > 4 and packed[4] != VERSION:
            if packed[4] > VERSION:
                wanted, fix = f"at most {VERSION}", "update laconic"
                raise ModelError(
                    f"{name} was packed by a newer laconic", got=f"version {packed[4]}", wanted=wanted, fix=fix
                )
            raise damaged
        if zlib.crc32(packed[:-_TAIL]).to_bytes(_TAIL, "little") != packed[-_TAIL:]:
            raise damaged
        reader = _Bytes(packed[:-_TAIL])
        try:
            reader.take(5)
            apart = reader.take(1)[0]
            length = reader.take(1)[0]
            suffix = ".onnx" if length == _ONNX else reader.take(length).decode("ascii")
            whole, structure = reader.varint(), reader.varint()
            check = reader.take(_CHECK)
        except (EOFError, UnicodeDecodeError):
            raise damaged from None
        most = min(MOST_BYTES, RATIO * len(packed) + ALLOWANCE)
        if apart > 1 or whole > most or (structure > whole if apart else structure != whole):
            got = f"{whole} bytes, {structure} of them structure, from {len(packed)}"
            raise ModelError(
                f"{name} states a size that cannot be", got=got, wanted=f"at most {most}", fix="get it again"
            )
        return cls(bool(apart), suffix, whole, structure, check, reader.at)


@dataclass
class _Bytes:
    content: bytes
    at: int = 0

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.content):
            raise EOFError
        self.at += count
        return self.content[self.at - count : self.at]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 63, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise EOFError


def _varint(value: int) -> bytes:
    found = b""
    while value >= 128:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def _suffix(suffix: str) -> bytes:
    return bytes([_ONNX]) if suffix == ".onnx" else bytes([len(suffix)]) + suffix.encode("ascii")
