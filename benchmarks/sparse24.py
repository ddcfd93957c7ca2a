"""2:4 sparse weights: what they cost in accuracy, and what they bring on a graphics card that multiplies by them.

Accuracy: ResNet-20 on CIFAR-10 cut to 2:4 in one shot, and trained on with the masks fixed (``resnet20-2of4`` of
:mod:`benchmarks.cifar`); both files in ONNX Runtime, all 10,000 test pictures, and their sizes: on a processor the
zeros are multiplied by like any other number.

Speed: the two linear layers of a transformer's feed-forward block in float16, pruned by laconic's step, as they are and
as torch's semi-structured tensors (Mishra et al. 2021, arXiv 2104.08378), which are checked to give the same. A card of
compute capability 8.0 or more is needed; the record of it is ``sparse24_speed``.

    python -m benchmarks.sparse24 [FOLDER]      the speed alone, its record in FOLDER
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import cifar, records
from benchmarks.resnet20 import beside, scored
from laconic import data, proof
from laconic.core import Context, Recipe, Step, Target, Traits
from laconic.runtime import onnxruntime
from laconic.steps.prune.weights import PruneWeights

PATTERN = "2:4"
SHAPES = {"ViT-Base": (768, 3072), "ViT-Large": (1024, 4096), "Llama-7B": (4096, 11008)}
TOKENS = (256, 2048, 16384)
ROUNDS, CALLS = 31, 20


def main(folder: Path) -> dict[str, Any]:
    task = cifar.load()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        network, _, _ = cifar.trained("resnet20-cifar10")
        _, right, _ = scored(network, task, path)
        once, _ = Recipe(_pruned()).apply(network, task, Context(onnxruntime.traits(Target("onnxruntime"))))
        again, _, told = cifar.trained("resnet20-2of4")
        for name, model, training in (("float32", network, None), ("2:4", once, None), ("2:4, trained", again, told)):
            size, found, _ = scored(model, task, path)
            rows.append({"name": name, "file_bytes": size, "training": training, **beside(right, found)})
            print(rows[-1], flush=True)
    record = records.write(folder, "sparse24", {"rows": rows})
    try:
        speed(folder)
    except records.Skipped as reason:
        print(f"speed: skipped: {reason}", flush=True)
    return record


def speed(folder: Path) -> dict[str, Any]:
    """Dense and sparse by turns; the ratio's median over the rounds with its interval."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        raise records.Skipped("no graphics card that multiplies by 2:4 sparse matrices")
    rows = [_row(name, tokens) for name in SHAPES for tokens in TOKENS]
    found = {"card": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}
    return records.write(folder, "sparse24_speed", found)


def _pruned() -> tuple[Step, ...]:
    return (PruneWeights(granularity=PATTERN),)


@torch.no_grad()
def _row(name: str, tokens: int) -> dict[str, Any]:
    inner, outer = SHAPES[name]
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(inner, outer), nn.GELU(), nn.Linear(outer, inner))
    task = data.from_arrays(np.eye(200, inner, dtype=np.float32), np.zeros(200, np.int64), trainable=False)
    cut, _ = Recipe(_pruned()).apply(block, task, Context(Traits()))
    up, down = (cut[i].weight.detach().half().cuda().contiguous() for i in (0, 2))
    x, wide = (torch.randn(tokens, width, device="cuda", dtype=torch.half) for width in (inner, outer))
    sparse = [torch.sparse.to_sparse_semi_structured(weight) for weight in (up, down)]
    dense = [up, down]

    def run(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return nn.functional.linear(x, weights[0]), nn.functional.linear(wide, weights[1])

    for expected, given in zip(run(dense), run(sparse), strict=True):
        if not torch.allclose(expected, given, atol=2e-2, rtol=2e-2):
            raise RuntimeError(f"{name}: the sparse product differs by {(expected - given).abs().max().item()}")
    times = [(_milliseconds(lambda: run(dense)), _milliseconds(lambda: run(sparse))) for _ in range(ROUNDS)]
    ratio, low, high = proof.median_interval(np.asarray([a / b for a, b in times]))
    milliseconds = float(np.median([a for a, _ in times]))
    row = {
        "name": name,
        "tokens": tokens,
        "dense_ms": milliseconds,
        "speed": {"value": ratio, "low": low, "high": high},
        "weight_bytes": [sum(w.numel() * 2 for w in dense), sum(w.numel() + w.numel() // 8 for w in dense)],
    }
    print(row, flush=True)
    return row


def _milliseconds(run: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(CALLS):
        run()
    end.record()
    end.synchronize()
    total: float = start.elapsed_time(end)
    return total / CALLS


if __name__ == "__main__":
    speed(Path(sys.argv[1]) if len(sys.argv) > 1 else records.FOLDER)
