"""A gate free of noise: in the graphs that the runtimes really run, the benchmarks' networks are in integers.

Random weights, small pictures: what becomes of a graph depends on neither.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import networks
from laconic import surgery
from laconic.core import Recipe, Target
from laconic.models import load
from laconic.runtime import onnxruntime, openvino
from laconic.steps.quantize.post_training import Quantize
from tests.networks import Rows, context, lively, task_for

ZOO: dict[str, tuple[int, ...]] = {
    "mlperf-tiny-resnet-8": (3, 32, 32),
    "mlperf-tiny-ds-cnn": (1, 49, 10),
    "cifar-resnet-20": (3, 32, 32),
    "cifar-resnet-56": (3, 32, 32),
    "vit-fashion": (1, 28, 28),
    "mobilenet-v1-0.75-224": (3, 64, 64),
    "mobilenet-v2-1.0-224": (3, 64, 64),
    "squeezenet-1.1": (3, 64, 64),
}
INTEGER_KERNELS = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat")
FLOAT_KERNELS = ("Conv", "FusedConv", "Gemm", "FusedGemm")


def test_no_network_is_forgotten() -> None:
    text = Path(networks.__file__).read_text(encoding="utf-8")
    assert len(ZOO) == len(networks.NETWORKS)
    assert [name for name in ZOO if name not in text] == []


@pytest.mark.parametrize("name", ZOO)
def test_every_convolution_and_product_is_an_integer_kernel(name: str, tmp_path: Path) -> None:
    model = lively(load(f"zoo:{name}").module)
    x = np.random.default_rng(0).standard_normal((4, *ZOO[name])).astype(np.float32)
    task = task_for("plain")
    object.__setattr__(task, "train", Rows({"x": x}, None))
    with torch.no_grad():  # statistics as training leaves them: else many random layers let nothing through
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = 1.0
        model.train()(torch.as_tensor(x))
    target, path = Target("onnxruntime"), tmp_path / "model.onnx"
    settings = context(traits=onnxruntime.traits(target))
    model, (facts,) = Recipe((Quantize(bias_correction=False),)).apply(model.eval(), task, settings)
    onnxruntime.deploy(model, {"x": x}, path, target)
    layers, floats = len(surgery.weighted_layers(model)), len(facts["left_in_float"])
    assert len(facts["layers"]) == layers
    assert floats == (name == "squeezenet-1.1"), "the mean that gives its output"

    found = onnxruntime.optimized_operators(path, target)
    assert sum(found.get(kind, 0) for kind in INTEGER_KERNELS) >= layers, found
    assert not set(FLOAT_KERNELS) & set(found), found
    # floats: the network's input and output, operators left in float, and what integer products of tokens read and give
    edges = 2 + floats + found.get("MatMulIntegerToFloat", 0)
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        assert found.get(kind, 0) <= 2 * edges, found

    compiled = openvino.optimized_operators(path, Target("openvino"))
    products = {kind: n for kind, n in compiled.items() if kind.split(":")[0] in ("Convolution", "FullyConnected")}
    assert sum(products.values()) == layers, compiled
    assert {kind.split(":")[1] for kind in products} <= {"u8", "i8"}, compiled
