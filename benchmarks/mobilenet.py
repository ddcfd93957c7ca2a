"""MobileNetV1 0.75 on ImageNet pictures, no training: laconic beside the quantizers of ONNX Runtime and of NNCF.

One run: the same 128 calibration pictures for everybody, agreement with the float network and top-1 on the same 872
held-out pictures, and timings interleaved (peer, laconic, peer) on one thread at batch 1.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import records
from laconic import data, measure, models, proof
from laconic.core import Target, Task
from laconic.pack import package
from laconic.runtime import runtime_of

CALIBRATORS = ("MinMax", "Entropy", "Percentile")
ROUNDS = 51


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
            files = {"laconic": made.model_path, **_peers(made.baseline_path, task, work, runtime)}
            rows += list(_compare(runtime, made.baseline_path, files, task))
            rows[-len(files) - 1]["shrink"] = summary
    return records.write(folder, "mobilenet", {"calibration": task.calibration, "rows": rows})


def _peers(baseline: Path, task: Task, work: Path, runtime: str) -> dict[str, Path]:
    """The files that ONNX Runtime's and NNCF's own quantizers make of the same float file."""
    inputs = task.calibration_batch().inputs["input"]
    files = {f"ONNX Runtime static, {c}": _ort_static(baseline, inputs, work / f"{c}.onnx", c) for c in CALIBRATORS}
    if runtime == "openvino":
        files["NNCF on OpenVINO"] = _nncf_openvino(baseline, inputs, work / "nncf.xml")
    else:
        files["NNCF on ONNX"] = _nncf_onnx(baseline, inputs, work / "nncf.onnx")
    return files


def _ort_static(baseline: Path, inputs: Any, out: Path, calibrator: str) -> Path:
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows: Iterator[Any] = iter(inputs)

        def get_next(self) -> dict[str, Any] | None:
            row = next(self.rows, None)
            return None if row is None else {"input": row[None]}

    prepared = out.with_suffix(".prepared.onnx")
    quant_pre_process(str(baseline), str(prepared))
    q.quantize_static(
        str(prepared),
        str(out),
        Reader(),
        quant_format=q.QuantFormat.QDQ,
        per_channel=True,
        activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
        calibrate_method=getattr(q.CalibrationMethod, calibrator),
    )
    return out


def _nncf_openvino(baseline: Path, inputs: Any, out: Path) -> Path:
    import nncf
    import openvino

    dataset = nncf.Dataset(list(inputs), lambda x: x[None])
    quantized = nncf.quantize(openvino.Core().read_model(baseline), dataset, subset_size=len(inputs))
    openvino.save_model(quantized, out, compress_to_fp16=False)
    return out


def _nncf_onnx(baseline: Path, inputs: Any, out: Path) -> Path:
    import nncf
    import onnx

    dataset = nncf.Dataset(list(inputs), lambda x: {"input": x[None]})
    onnx.save(nncf.quantize(onnx.load(baseline), dataset, subset_size=len(inputs)), out)
    return out


def _compare(runtime: str, baseline: Path, files: dict[str, Path], task: Task) -> Iterator[dict[str, Any]]:
    """Score every file on the holdout and time it against the float file and against laconic's."""
    target, opener = Target(runtime), runtime_of(Target(runtime))
    original, mine = opener.open_file(baseline, target), opener.open_file(files["laconic"], target)
    one = task.search.read([0]).inputs
    wanted = _decisions(original, task)
    truth = np.concatenate([_targets(task, rows) for rows in measure.chunks(len(task.holdout))])
    for name, path in files.items():
        session = opener.open_file(path, target)
        found = _decisions(session, task)
        agree = int((found == wanted).sum())
        row = {
            "target": runtime,
            "name": name,
            "n": len(wanted),
            "top1": float((found == truth).mean()),
            "agreement": agree / len(wanted),
            "agreement_interval": proof.proportion_interval(agree, len(wanted)),
            "file_bytes": path.stat().st_size
            + (path.with_suffix(".bin").stat().st_size if path.suffix == ".xml" else 0),
            "speed_to_float": _ratio(measure.paired(original, session, one, ROUNDS)),
        }
        if name != "laconic":
            row["laconic_over_peer"] = _ratio(measure.paired(session, mine, one, ROUNDS))
        print(row, flush=True)
        yield row
    yield {
        "target": runtime, "name": "float32", "n": len(wanted), "top1": float((wanted == truth).mean()),
        "agreement": 1.0, "file_bytes": baseline.stat().st_size,
    }  # fmt: skip


def _decisions(session: Any, task: Task) -> Any:
    chunks = measure.chunks(len(task.holdout))
    return np.concatenate([task.metric.decide(session(task.holdout.read(rows).inputs)) for rows in chunks])


def _targets(task: Task, rows: Any) -> Any:
    return task.holdout.read(rows).targets


def _ratio(found: measure.Paired) -> dict[str, Any]:
    value, low, high = proof.median_interval(found.wall_ratio)
    return {"value": value, "low": low, "high": high, "noisy": found.noisy}


if __name__ == "__main__":
    main(records.FOLDER)
