"""Packed files that were tampered with, 100,000 of them: a clear error or the right answer, and what they cost.

Half of the files get the check sum that belongs to what was changed: the decoder itself meets the change. A file may
take twice the memory that :func:`laconic.pack.container.memory_bytes` declares for its size, and no file a minute.
"""

from __future__ import annotations

import collections
import random
import resource
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from benchmarks import records
from laconic.core import Array
from laconic.errors import ModelError
from laconic.pack import container

MUTATIONS = 100_000


def main(folder: Path) -> dict[str, Any]:
    content = _model()
    packed = container.pack(content, ".onnx").content
    outcome(packed, content)  # everything is compiled, and every table is made
    before, slowest, found = _peak_bytes(), 0.0, collections.Counter[str]()
    began = time.process_time()
    for seed in range(MUTATIONS):
        start = time.process_time()
        found[outcome(mutated(packed, seed, mended=seed % 2 == 0), content)] += 1
        slowest = max(slowest, time.process_time() - start)
    return records.write(
        folder,
        "fuzz",
        {
            "mutations": MUTATIONS,
            "file_bytes": len(content),
            "packed_bytes": len(packed),
            "outcomes": dict(found),
            "cpu_seconds": time.process_time() - began,
            "slowest_seconds": slowest,
            "peak_bytes_more": _peak_bytes() - before,
            "declared_bytes": container.memory_bytes(container.RATIO * len(packed) + container.ALLOWANCE),
        },
    )


def outcome(packed: bytes, content: bytes) -> str:
    """What comes of decoding: ``refused`` in one line, or ``right``; what is neither is an error of this program."""
    try:
        found = container.unpack(packed)
    except ModelError as error:
        return "refused" if "\n" not in str(error) else "refused in several lines"
    assert found.content == content, "another file came out"
    return "right"


def mutated(packed: bytes, seed: int, mended: bool) -> bytes:
    """``packed`` with one to four changes; ``mended``: with the check sum of what is there now."""
    chance = random.Random(seed)
    body = bytearray(packed[:-4])
    for _ in range(chance.choice((1, 1, 2, 4))):
        # Half of the changes meet the head and the beginning of the structure, where a size may lie.
        at = chance.randrange(min(len(body), 64) if chance.random() < 0.5 else len(body)) if body else 0
        few = chance.randrange(1, 9)
        match chance.randrange(6):
            case 0:
                body[at : at + 1] = bytes([(body[at] if body else 0) ^ 1 << chance.randrange(8)])
            case 1:
                body[at : at + few] = chance.randbytes(few)
            case 2:
                body[at : at + few] = bytes([chance.choice((0, 127, 128, 255))]) * few
            case 3:
                body[at:at] = chance.randbytes(few)
            case 4:
                del body[at : at + few]
            case _:
                del body[chance.randrange(len(body) + 1) :]
    return bytes(body) + (zlib.crc32(body).to_bytes(4, "little") if mended else packed[-4:])


def _model() -> bytes:
    """A small file with int8, ternary, float and int32 weights, and with names."""
    random_ = np.random.default_rng(0)
    codes = np.clip(np.rint(random_.laplace(scale=9, size=(16, 24))), -127, 127).astype(np.int8)
    arrays: dict[str, Array] = {
        "conv1.weight": random_.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "fc.weight": codes,
        "fc.bias": random_.integers(-(2**16), 2**16, 16).astype(np.int32),
        "ternary": np.clip(np.rint(random_.normal(size=(8, 36)) * 0.6), -1, 1).astype(np.int8),
    }
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    nodes = [helper.make_node("Conv", ["x", "conv1.weight"], ["y"], name="conv1", pads=[1, 1, 1, 1])]
    content: bytes = helper.make_model(helper.make_graph(nodes, "g", [], [], tensors)).SerializeToString()
    return content


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(records.FOLDER)
