"""MobileNetV1 0.75 on ImageNet pictures, no training: laconic beside the quantizers of ONNX Runtime and of NNCF.

One run: the same 128 calibration pictures for everybody, agreement with the float network and top-1 on the same 872
held-out pictures, and timings interleaved (peer, laconic, peer) on one thread at batch 1.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import peers, records
from laconic import data, models, proof
from laconic.core import Target, Task
from laconic.pack import package
from laconic.runtime import runtime_of


def main(folder: Path) -> dict[str, Any]:
    weights = records.data("imagenet/mobilenet_v1_0.75_224.safetensors")
    pictures = records.data("imagenet/val1300_227.parquet")
    model = f"zoo:mobilenet-v1-0.75-224@{weights}"
    task = data.load(str(pictures), preprocess=models.load(model).preprocess, trainable=False)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        for runtime in ("onnxruntime", "openvino"):
            options = ("--no-train", "--max-drop", "2%", "--budget", "4m", "--target", runtime)
            summary = records.laconic("shrink", model, "--data", pictures, "--out", work / runtime, *options)
            made = package.read(work / runtime)
            makers = peers.quantizers(runtime, made.baseline_path, task, work)
            files = {"laconic": made.model_path, **{name: make() for name, make in makers.items()}}
            rows += list(_compare(runtime, made.baseline_path, files, task))
            rows[-len(files) - 1]["shrink"] = summary
    return records.write(folder, "mobilenet", {"calibration": task.calibration, "rows": rows})


def _compare(runtime: str, baseline: Path, files: dict[str, Path], task: Task) -> Iterator[dict[str, Any]]:
    """Score every file on the holdout and time it against the float file and against laconic's."""
    target, opener = Target(runtime), runtime_of(Target(runtime))
    original, mine = opener.open_file(baseline, target), opener.open_file(files["laconic"], target)
    one = task.search.read([0]).inputs
    splits = (task.holdout,)
    wanted, truth = peers.decisions(original, splits, task), peers.targets(splits)
    for name, path in files.items():
        session = opener.open_file(path, target)
        found = peers.decisions(session, splits, task)
        agree = int((found == wanted).sum())
        row = {
            "target": runtime,
            "name": name,
            "n": len(wanted),
            "top1": float((found == truth).mean()),
            "agreement": agree / len(wanted),
            "agreement_interval": proof.proportion_interval(agree, len(wanted)),
            "file_bytes": peers.file_bytes(path),
            "speed_to_float": peers.ratio(original, session, one),
        }
        if name != "laconic":
            row["laconic_over_peer"] = peers.ratio(session, mine, one)
        print(row, flush=True)
        yield row
    yield {
        "target": runtime, "name": "float32", "n": len(wanted), "top1": float((wanted == truth).mean()),
        "agreement": 1.0, "file_bytes": baseline.stat().st_size,
    }  # fmt: skip


if __name__ == "__main__":
    main(records.FOLDER)
