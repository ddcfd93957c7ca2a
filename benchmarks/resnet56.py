"""ResNet-56 on CIFAR-10 with fewer channels: what half of its MACs, and less, cost in accuracy, and bring in time.

The float network and the pruned ones come from :mod:`benchmarks.cifar`: trained on the complete JPEG training set,
pruned, and trained on, taught by the float network. Every file is scored on all 10,000 test pictures beside the float
file's answers, and timed against it in ONNX Runtime and OpenVINO, by turns, one thread, batch 1.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import cifar, records
from benchmarks.resnet20 import beside, scored
from laconic import measure, proof
from laconic.core import Target
from laconic.profile import profile
from laconic.runtime import runtime_of

FLOAT = "resnet56-cifar10"
PRUNED = ("resnet56-2.1x", "resnet56-2.55x", "resnet56-2.55x-again")
TARGETS = (Target("onnxruntime"), Target("openvino"))
ROUNDS = 51
PUBLISHED = {
    "who": "DepGraph",
    "address": "https://arxiv.org/abs/2301.12900",
    "top1_original": 0.9353,
    "rows": [{"fewer_macs": 2.11, "top1": 0.9377}, {"fewer_macs": 2.57, "top1": 0.9364}],
}
"""Published (table 2), on the exact pixels; not run here."""


def main(folder: Path) -> dict[str, Any]:
    task = cifar.load()
    example = task.train.read([0, 1]).inputs
    tensors = {name: torch.as_tensor(x) for name, x in example.items()}
    first = {name: x[:1] for name, x in example.items()}
    rows: list[dict[str, Any]] = []
    right: Any = None
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "float.onnx"
        for name in (FLOAT, *PRUNED):
            network, _, told = cifar.trained(name)
            macs = profile(network, tensors).macs
            path = whole if name == FLOAT else Path(scratch) / "pruned.onnx"
            size, found, _ = scored(network, task, path)
            right = found if right is None else right
            row = {"name": name, "macs": macs, "file_bytes": size, "training": told, **beside(right, found)}
            if path != whole:
                row["speed_to_float"] = {t.runtime: _ratio(whole, path, t, first) for t in TARGETS}
            print(row, flush=True)
            rows.append(row)
    return records.write(folder, "resnet56", {"published": PUBLISHED, "rows": rows})


def _ratio(whole: Path, pruned: Path, target: Target, example: Any) -> dict[str, Any]:
    before, after = (runtime_of(target).open_file(path, target) for path in (whole, pruned))
    found = measure.paired(before, after, example, ROUNDS)
    value, low, high = proof.median_interval(found.wall_ratio)
    return {"value": value, "low": low, "high": high, "noisy": found.noisy}


if __name__ == "__main__":
    main(records.FOLDER)
