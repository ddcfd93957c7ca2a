"""A network that came from an ONNX file: quantized and written back into the file's own graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from laconic import surgery
from laconic.core import Recipe, Target
from laconic.fake_quantize import attached, weight_quantizer
from laconic.models import load
from laconic.runtime import onnx_file, onnxruntime, openvino
from laconic.runtime.difference import first_difference, relative_error
from laconic.steps.quantize.post_training import Quantize
from tests.networks import context, inputs_of, network, task_for, tensors

TARGET = Target("onnxruntime")
NAMES = ["residual", "depthwise", "mlp", "twice"]

Imported = Callable[[str, bool], tuple[nn.Module, Path]]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    """The network read from a file, quantized or not, and the file that is written of it again."""
    made: dict[tuple[str, bool], tuple[nn.Module, Path]] = {}

    def get(name: str, quantized: bool) -> tuple[nn.Module, Path]:
        if (name, quantized) not in made:
            folder = tmp_path_factory.mktemp(name)
            if (name, not quantized) in made:
                source = made[name, not quantized][1].parent / "source.onnx"
            else:
                source = folder / "source.onnx"
                onnx_file.deploy(network(name), inputs_of(name, 3), source)
            (folder / "source.onnx").write_bytes(source.read_bytes())
            model: Any = load(str(source)).module
            if quantized:
                model, _ = Recipe((Quantize(),)).apply(model, task_for(name), context())
            onnx_file.deploy(model, inputs_of(name, 3), folder / "model.onnx")
            made[name, quantized] = model, folder / "model.onnx"
        return made[name, quantized]

    return get


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quantized", [False, True])
def test_the_file_computes_what_the_model_computes(name: str, quantized: bool, imported: Imported) -> None:
    model, path = imported(name, quantized)
    inputs = inputs_of(name, 5, seed=6)
    with torch.no_grad():
        wanted = surgery.call(model, tensors(inputs))
        original = surgery.call(network(name), tensors(inputs))
    for runtime in (onnxruntime, openvino):
        found = runtime.open_file(path, TARGET)(inputs)
        for key, y in zip(found, wanted.values(), strict=True):
            assert relative_error(found[key], y.numpy()) < (1e-2 if quantized else 1e-5)
    for y, first in zip(wanted.values(), original.values(), strict=True):
        assert relative_error(y.numpy(), first.numpy()) < (0.1 if quantized else 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_in_integers(name: str, imported: Imported) -> None:
    _, path = imported(name, True)
    found = onnxruntime.optimized_operators(path, TARGET)
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul"} & set(found), found
    assert found.get("QuantizeLinear", 0) <= 2
    assert found.get("DequantizeLinear", 0) <= 2


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_the_files_codes_are_the_steps_codes(name: str, imported: Imported) -> None:
    model, path = imported(name, True)
    graph = onnx.load(path).graph
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    made = {output: node for node in graph.node for output in node.output}
    layers = surgery.weighted_layers(model)
    nodes = {node.name: node for node in graph.node if node.op_type in ("Conv", "Gemm")}
    assert set(nodes) == set(layers)
    for layer, node in nodes.items():
        quantizer = weight_quantizer(layers[layer])
        assert quantizer is not None
        codes = values[made[node.input[1]].input[0]]
        wanted = quantizer.codes(layers[layer].parametrizations["weight"].original).detach().numpy()
        assert codes.dtype == np.int8
        assert np.array_equal(codes, wanted)


def test_the_layer_that_differs_is_named(imported: Imported) -> None:
    open_file = partial(onnxruntime.open_file, target=TARGET)
    model, path = imported("residual", True)
    assert attached(model) is not None
    assert first_difference(model, path, inputs_of("residual", 4), 1e-2, open_file) is None
    layer = list(surgery.weighted_layers(model))[3]
    with torch.no_grad():
        surgery.weighted_layers(model)[layer].bias += 1.0
    text = first_difference(model, path, inputs_of("residual", 4), 1e-2, open_file)
    assert text is not None
    assert text.startswith(f"{layer} ")
