"""The demo: train the smallest of three networks that reads digits, then shrink it as anybody would."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from laconic import app, console, measure, surgery
from laconic.core import Arrays, Target
from laconic.data import load as load_task
from laconic.errors import LaconicError
from laconic.goal import Goal
from laconic.models import load as load_model
from laconic.report import front_svg
from laconic.steps.train.fit import Schedule, fit
from laconic.story.shrink import Result, Wish, shrink

WIDTHS = (32, 64, 128)
WANTED = 0.98
TRAINING = Schedule(epochs=40, lr=3e-3, batch=64, weight_decay=1e-4, distill=0.0, temperature=4.0)
GOAL = Goal.parse(max_drop="2%", budget="90s")


def run(out: Path) -> Result:
    """Train into ``out``, shrink into ``out``/package; a network that was trained there before is taken as it is."""
    out.mkdir(parents=True, exist_ok=True)
    with console.ConsoleReporter() as reporter:
        weights = next(iter(sorted(out.glob("digits-cnn-*.safetensors"))), None)
        if weights is None:
            weights = _train(out, reporter)
        spec = f"zoo:{weights.stem}@{weights}"
        command = f"laconic shrink {spec} --data digits --max-drop 2% --budget 90s --out {out / 'package'}"
        reporter.note(f"the same as: {command}")
        data = {"spec": "digits", "preprocess": None, "max_corrupt": 0.0}
        load = partial(app.load_both, spec, data, trainable=True, seed=0)
        result = shrink(load, Wish(GOAL, Target("onnxruntime"), out / "package", reporter=reporter))
    (out / "front.svg").write_text(front_svg(result.package.manifest), encoding="utf-8")
    return result


def _train(out: Path, reporter: console.ConsoleReporter) -> Path:
    """Train the widths in turn until one reaches the score on search; its weights."""
    task = load_task("digits", preprocess=None)
    for width in WIDTHS:
        model = load_model(f"zoo:digits-cnn-{width}").module
        fit(model, task.train, task.loss, None, TRAINING, 0, partial(_progress, reporter, width))

        def predictor(inputs: Arrays, model: Any = model) -> dict[str, Any]:
            with torch.no_grad():
                outputs = surgery.call(model, {name: torch.as_tensor(np.asarray(x)) for name, x in inputs.items()})
            return {name: y.numpy() for name, y in outputs.items()}

        score = task.metric.aggregate(measure.records(predictor, task.search, task.metric))
        reporter.note(f"digits-cnn of width {width}: {score:.1%} on {len(task.search)} samples")
        if score >= WANTED:
            path = out / f"digits-cnn-{width}.safetensors"
            safetensors.torch.save_file(model.state_dict(), path)
            return path
    raise LaconicError(f"no width of {WIDTHS} reached {WANTED:.0%}")


def _progress(reporter: console.ConsoleReporter, width: int, text: str, fraction: float) -> None:
    reporter.progress(f"width {width}: {text}", fraction)
