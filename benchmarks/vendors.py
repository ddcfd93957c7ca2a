"""MobileNetV1 0.75 on LiteRT and ExecuTorch: laconic beside the quantizers that come with the two runtimes.

One run: the same 128 calibration pictures for both, agreement with the float network and top-1 on the same 872
held-out pictures, and timings interleaved on one thread at batch 1. The files of a runtime have float inputs and
outputs and are written by the same code: what differs is where the integers are, and which.
"""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import records
from benchmarks.quantization import RECIPE
from laconic import data, measure, models, proof
from laconic.core import Context, Target, Task
from laconic.runtime import executorch, litert, runtime_of
from laconic.runtime.integers import Names

ROUNDS = 51
NEEDED = {"litert": ("litert_torch", "ai_edge_litert"), "executorch": ("executorch",)}


def main(folder: Path) -> dict[str, Any]:
    for module in (name for names in NEEDED.values() for name in names):
        if importlib.util.find_spec(module) is None:
            raise records.Skipped(f"{module} is not installed; pip install 'laconic[litert,executorch]'")
    weights = records.data("imagenet/mobilenet_v1_0.75_224.safetensors")
    pictures = records.data("imagenet/val1300_227.parquet")
    loaded = models.load(f"zoo:mobilenet-v1-0.75-224@{weights}")
    task = data.load(str(pictures), preprocess=loaded.preprocess, trainable=False)
    model = loaded.module.eval()
    traits = litert.traits(Target("litert"))  # ExecuTorch's are the same as far as this network goes
    mine, _ = RECIPE.apply(model, task, Context(traits=traits))
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for runtime in NEEDED:
            rows += list(_compare(runtime, model, mine, task, Path(scratch)))
    return records.write(folder, "vendors", {"calibration": task.calibration, "rows": rows})


def _compare(
    runtime: str, model: torch.nn.Module, mine: torch.nn.Module, task: Task, work: Path
) -> Iterator[dict[str, Any]]:
    """Write the three files, score them on the holdout, time them against the float file and laconic's."""
    target, opener = Target(runtime), runtime_of(Target(runtime))
    example = {"input": task.calibration_batch().inputs["input"][:1]}
    paths = {name: work / f"{name}{opener.SUFFIX}" for name in ("float32", "vendor", "laconic")}
    opener.deploy(model, example, paths["float32"], target)
    opener.deploy(mine, example, paths["laconic"], target)
    _vendor(runtime, model, task, paths["vendor"])
    sessions = {name: opener.open_file(path, target) for name, path in paths.items()}
    wanted = _decisions(sessions["float32"], task)
    truth = np.concatenate([task.holdout.read(rows).targets for rows in measure.chunks(len(task.holdout))])
    for name, session in sessions.items():
        found = _decisions(session, task)
        agree = int((found == wanted).sum())
        row = {
            "target": runtime,
            "name": name,
            "n": len(wanted),
            "top1": float((found == truth).mean()),
            "agreement": agree / len(wanted),
            "agreement_interval": proof.proportion_interval(agree, len(wanted)),
            "file_bytes": paths[name].stat().st_size,
            "speed_to_float": _ratio(measure.paired(sessions["float32"], session, example, ROUNDS)),
            "laconic_over_this": _ratio(measure.paired(session, sessions["laconic"], example, ROUNDS)),
        }
        print(row, flush=True)
        yield row


def _vendor(runtime: str, model: torch.nn.Module, task: Task, path: Path) -> None:
    """The runtime's own quantizer, per channel, calibrated on the same pictures, as its documentation does it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        if runtime == "litert":
            from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer as Quantizer
            from litert_torch.quantize.pt2e_quantizer import get_symmetric_quantization_config as configured
        else:
            from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer as Quantizer
            from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
                get_symmetric_quantization_config as configured,
            )
        pictures = torch.as_tensor(task.calibration_batch().inputs["input"])
        args, names = (pictures[:1],), Names(1, ("input",), (("output", 0),))
        with torch.no_grad():
            graph = torch.export.export(model, args).module()
            prepared = prepare_pt2e(graph, Quantizer().set_global(configured(is_per_channel=True)))
            for picture in pictures:
                prepared(picture[None])
            converted = convert_pt2e(prepared, fold_quantize=runtime != "litert")  # as each converter wants it
            again = torch.export.export(converted, args).module(check_guards=False)
    if runtime == "litert":
        litert.write(again, args, names, path, integers=True)
    else:
        executorch.write(again, args, names, path)


def _decisions(session: Any, task: Task) -> Any:
    chunks = measure.chunks(len(task.holdout))
    return np.concatenate([task.metric.decide(session(task.holdout.read(rows).inputs)) for rows in chunks])


def _ratio(found: measure.Paired) -> dict[str, Any]:
    value, low, high = proof.median_interval(found.wall_ratio)
    return {"value": value, "low": low, "high": high, "noisy": found.noisy}


if __name__ == "__main__":
    main(records.FOLDER)
