"""Quantization of networks and on samples that nobody would wish for: one clear line, or a file that is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Recipe, Step, Target, Task
from laconic.errors import DataError
from laconic.report import sections
from laconic.runtime import onnxruntime, openvino
from laconic.runtime.difference import relative_error
from laconic.steps import STEPS
from laconic.steps.quantize.post_training import Quantize
from tests.networks import Rows, context, inputs_of, network, task_for, tensors

CALIBRATED: dict[str, Callable[[], Step]] = {
    "Quantize": STEPS["Quantize"],
    "Equalize": STEPS["Equalize"],
    "Smooth": STEPS["Smooth"],
    "ProductQuantize": STEPS["ProductQuantize"],
    "Ternary": lambda: STEPS["Ternary"](epochs=0),
    "Binary": lambda: STEPS["Binary"](epochs=0),
}


def task_of(x: np.ndarray) -> Task:
    return replace(task_for("plain"), train=Rows({"x": x}, None))


@pytest.mark.parametrize("step", CALIBRATED)
def test_no_calibration_data(step: str) -> None:
    task = task_of(inputs_of("plain", 4)["x"][:0])
    with pytest.raises(DataError, match=r"no calibration samples: got 0, wanted at least 1 sample"):
        Recipe((CALIBRATED[step](),)).apply(network("plain"), task, context())


@pytest.mark.parametrize("step", CALIBRATED)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_in_one_batch(step: str, value: float) -> None:
    x = inputs_of("plain", 40)["x"]
    x[33, 0, 1, 1] = value
    with pytest.raises(DataError, match="calibration sample 33 holds a value of x that is not finite; repair or"):
        Recipe((CALIBRATED[step](),)).apply(network("plain"), task_of(x), context())


def quantized(model: nn.Module, task: Task | None = None) -> tuple[nn.Module, Any]:
    changed, (facts,) = Recipe((Quantize(),)).apply(model, task or task_for("plain"), context())
    return changed, facts


def said(facts: Any) -> str:
    """What the report and the terminal say below the comparison."""
    return " ".join(sections.warnings({"recipe": [{"step": "Quantize"}], "facts": [facts]}))


@pytest.mark.parametrize("runtime", [onnxruntime, openvino], ids=["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["twice", "plain"])
def test_outliers_of_a_million(name: str, runtime: Any, tmp_path: Path) -> None:
    """One pixel of one sample: the other samples keep their answers, and the range is told of. A layer that is called
    twice keeps a scale for each of its calls."""
    x = inputs_of(name, 64)["x"]
    x[7, 0, 0, 0] = 1e6
    changed, facts = quantized(network(name), task_of(x))
    assert "one calibration sample alone sets the ranges of input/x" in said(facts)
    fresh = inputs_of(name, 8, seed=3)
    with torch.no_grad():
        wanted = surgery.call(changed, tensors(fresh))["output"].numpy()
    assert np.isfinite(wanted).all()
    target = Target(runtime.__name__.rpartition(".")[2])
    runtime.deploy(changed, fresh, tmp_path / "model.onnx", target)
    found = runtime.open_file(tmp_path / "model.onnx", target)(fresh)["output"]
    assert relative_error(found, wanted) < 1e-2


def test_one_sample_names_the_ranges_that_cannot_be_relied_on() -> None:
    _, facts = quantized(network("plain"), task_of(inputs_of("plain", 1)["x"]))
    assert said(facts) == (
        "Quantize: calibrated on one sample: the ranges of input/x, /relu#0, /relu#1, /relu#2 are unreliable."
    )


class Unsupported(nn.Module):
    """A function without an integer kernel between two layers that have one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(torch.erf(self.first(x)))).mean((2, 3)))


def test_an_operator_without_integers_in_the_middle_is_left_in_float_and_said(tmp_path: Path) -> None:
    changed, facts = quantized(Unsupported().eval())
    assert facts["left_in_float"] == ["/erf#0"]
    assert [name for name, _ in facts["layers"]] == ["first", "second", "head"]
    assert said(facts) == "Quantize left in float: /erf#0."
    target, path = Target("onnxruntime"), tmp_path / "model.onnx"
    onnxruntime.deploy(changed, inputs_of("plain", 3), path, target)
    found = onnxruntime.optimized_operators(path, target)
    assert (found["QLinearConv"], found["Erf"]) == (2, 1)
    assert "Conv" not in found
    for name in ("plain", "residual", "twice"):
        assert quantized(network(name), task_for(name))[1]["left_in_float"] == []


def test_free_sizes_of_batch_and_picture(tmp_path: Path) -> None:
    """A file from elsewhere whose pictures may have any size keeps them free, in integers too."""
    import onnx

    from laconic.models import load

    path, target = tmp_path / "float.onnx", Target("onnxruntime")
    onnxruntime.deploy(network("residual"), inputs_of("residual", 3), path, target)
    proto = onnx.load(path)
    for axis in (2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"
    del proto.graph.value_info[:]
    onnx.save(proto, path)
    changed, _ = quantized(load(str(path)).module)
    onnxruntime.deploy(changed, inputs_of("residual", 3), tmp_path / "model.onnx", target)
    session, reference = (onnxruntime.open_file(p, target) for p in (tmp_path / "model.onnx", path))
    for n, size in ((1, 8), (3, 8), (2, 12)):
        x = {"x": np.random.default_rng(n).standard_normal((n, 3, size, size)).astype(np.float32)}
        found, wanted = (next(iter(run(x).values())) for run in (session, reference))
        assert found.shape == (n, 4)
        assert relative_error(found, wanted) < 0.2
