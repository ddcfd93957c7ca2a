"""The quantizers of others, run on the same float file with the same calibration samples, and their comparison.

Each makes a file for a runtime of laconic's, as its documentation advises: ONNX Runtime's static quantization with its
three calibrators (per channel, unsigned activations), NNCF on OpenVINO and on ONNX (for a transformer its model type
says so); and the int8 files that MLPerf Tiny publishes, in LiteRT.

ONNX Runtime keeps the values of all layers on all calibration samples: 10 GB of memory for MobileNetV2. Shown in parts
it needs less, but its entropy calibrator then finds other ranges (scales up to 35 % apart), so it is given all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from laconic import measure, proof
from laconic.core import Array, Arrays, Predictor, Split, Target, Task

CALIBRATORS = ("MinMax", "Entropy", "Percentile")
MLPERF = "MLPerf Tiny int8"
ROUNDS = 51
OPENINGS, ROUNDS_OF_ONE = 15, 21

Makers = dict[str, Callable[[], Path]]


def quantizers(runtime: str, baseline: Path, task: Task, work: Path, transformer: bool = False) -> Makers:
    """By name, what makes the peer's file in ``work`` from the float ONNX file ``baseline``."""
    inputs = next(iter(task.calibration_batch().inputs.values()))

    def static(calibrator: str) -> Callable[[], Path]:
        return lambda: _ort_static(baseline, inputs, work / f"{calibrator}.onnx", calibrator)

    makers = {f"ONNX Runtime static, {c}": static(c) for c in CALIBRATORS}
    if runtime == "openvino":
        makers["NNCF on OpenVINO"] = lambda: _nncf_openvino(baseline, inputs, work / "nncf.xml", transformer)
    else:
        makers["NNCF on ONNX"] = lambda: _nncf_onnx(baseline, inputs, work / "nncf.onnx", transformer)
    return makers


def _ort_static(baseline: Path, inputs: Array, out: Path, calibrator: str) -> Path:
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = _input_name(baseline)

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows: Iterator[Any] = iter(inputs)

        def get_next(self) -> dict[str, Any] | None:
            row = next(self.rows, None)
            return None if row is None else {name: row[None]}

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


def _nncf_openvino(baseline: Path, inputs: Array, out: Path, transformer: bool) -> Path:
    import nncf
    import openvino

    dataset = nncf.Dataset(list(inputs), lambda x: x[None])
    kind = nncf.ModelType.TRANSFORMER if transformer else None
    model = openvino.Core().read_model(baseline)
    quantized = nncf.quantize(model, dataset, subset_size=len(inputs), model_type=kind)
    openvino.save_model(quantized, out, compress_to_fp16=False)
    return out


def _nncf_onnx(baseline: Path, inputs: Array, out: Path, transformer: bool) -> Path:
    import nncf
    import onnx

    name = _input_name(baseline)
    dataset = nncf.Dataset(list(inputs), lambda x: {name: x[None]})
    kind = nncf.ModelType.TRANSFORMER if transformer else None
    onnx.save(nncf.quantize(onnx.load(baseline), dataset, subset_size=len(inputs), model_type=kind), out)
    return out


def _input_name(baseline: Path) -> str:
    import onnx

    return str(onnx.load(baseline, load_external_data=False).graph.input[0].name)


def tflite(path: Path, target: Target) -> Predictor:
    """A foreign TFLite file of one input and one output as a predictor: channels last, integers where it has them."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=target.threads)
    interpreter.allocate_tensors()
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()

    def one(x: Array) -> Array:
        interpreter.set_tensor(given["index"], _stored(x.transpose(0, 2, 3, 1), given))
        interpreter.invoke()
        return _real(interpreter.get_tensor(made["index"]), made)

    def run(inputs: Arrays) -> dict[str, Array]:
        x = next(iter(inputs.values()))
        return {"output": np.concatenate([one(row[None]) for row in x])}

    return run


def _stored(x: Array, tensor: dict[str, Any]) -> Array:
    scale, zero = tensor["quantization"]
    if not scale:
        return np.ascontiguousarray(x)
    limits = np.iinfo(tensor["dtype"])
    return np.asarray(np.clip(np.rint(x / scale) + zero, limits.min, limits.max), tensor["dtype"])


def _real(codes: Array, tensor: dict[str, Any]) -> Array:
    scale, zero = tensor["quantization"]
    return np.asarray((codes.astype(np.float32) - zero) * scale if scale else codes)


# ----------------------------------------------------------------------------------------------------------- comparing


def decisions(predictor: Predictor, splits: tuple[Split, ...], task: Task) -> Array:
    """What the predictor decides on the samples of ``splits``, in order."""
    chunks = [(split, rows) for split in splits for rows in measure.chunks(len(split))]
    return np.concatenate([task.metric.decide(predictor(split.read(rows).inputs)) for split, rows in chunks])


def targets(splits: tuple[Split, ...]) -> Array:
    """What is right on the samples of ``splits``, in order."""
    found = [split.read(rows).targets for split in splits for rows in measure.chunks(len(split))]
    return np.concatenate([part for part in found if part is not None])


def ratio(baseline: Predictor, candidate: Predictor, inputs: Arrays) -> dict[str, Any]:
    """The baseline's time over the candidate's, timed in turns: the median with its 95 % interval."""
    found = measure.paired(baseline, candidate, inputs, ROUNDS)
    value, low, high = proof.median_interval(found.wall_ratio)
    return {"value": value, "low": low, "high": high, "noisy": found.noisy}


def ratio_anew(baseline: Callable[[], Predictor], candidate: Callable[[], Predictor], inputs: Arrays) -> dict[str, Any]:
    """As :func:`ratio`, of files close in speed: both are opened anew, :data:`OPENINGS` times, and the interval is that
    of the openings' medians, because where a session's memory lies is luck that lasts as long as the session."""
    found = [measure.paired(baseline(), candidate(), inputs, ROUNDS_OF_ONE) for _ in range(OPENINGS)]
    value, low, high = proof.median_interval(np.array([np.median(one.wall_ratio) for one in found]))
    return {"value": value, "low": low, "high": high, "noisy": sum(one.noisy for one in found) > OPENINGS / 2}


def file_bytes(path: Path) -> int:
    """Bytes of the file; of an OpenVINO model, its weights' too."""
    return path.stat().st_size + (path.with_suffix(".bin").stat().st_size if path.suffix == ".xml" else 0)
