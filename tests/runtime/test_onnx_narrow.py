"""Weights of at most 4 bits are stored in 4 and computed by the same integer kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from laconic import surgery
from laconic.core import Recipe, Target
from laconic.fake_quantize import weight_quantizer
from laconic.runtime import onnxruntime, openvino
from laconic.runtime.difference import relative_error
from laconic.steps.quantize.post_training import Quantize
from tests.networks import context, inputs_of, network, task_for, tensors

TARGET = Target("onnxruntime")
NAME = "residual"


def deployed(bits: int, path: Path) -> torch.nn.Module:
    model, _ = Recipe((Quantize(bits=bits),)).apply(network(NAME), task_for(NAME), context())
    onnxruntime.deploy(model, inputs_of(NAME, 3), path, TARGET)
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[torch.nn.Module, Path]]:
    folder = tmp_path_factory.mktemp("narrow")
    return {bits: (deployed(bits, folder / f"{bits}.onnx"), folder / f"{bits}.onnx") for bits in (8, 4)}


def test_half_the_bytes_and_the_same_kernels(files: dict[int, tuple[torch.nn.Module, Path]]) -> None:
    kernels = {bits: onnxruntime.optimized_operators(path, TARGET) for bits, (_, path) in files.items()}
    assert kernels[4] == kernels[8]
    model, path = files[4]
    codes = [layer.weight.numel() for layer in surgery.weighted_layers(model).values() if layer.weight.numel() >= 512]
    saved = files[8][1].stat().st_size - path.stat().st_size
    assert saved > 0.5 * sum(codes) - 200 * len(codes)
    convolutions = openvino.optimized_operators(path, Target("openvino"))
    assert "Convolution:f32" not in convolutions


def test_the_codes_are_the_models_to_the_bit(files: dict[int, tuple[torch.nn.Module, Path]]) -> None:
    model, path = files[4]
    graph = onnx.load(path).graph
    stored = {
        t.name: numpy_helper.to_array(t).astype(np.int8)
        for t in graph.initializer
        if t.data_type == onnx.TensorProto.INT4
    }
    casts = [node.input[0] for node in graph.node if node.op_type == "Cast"]
    assert set(casts) == set(stored)
    wanted = []
    for layer in surgery.weighted_layers(model).values():
        quantizer = weight_quantizer(layer)
        assert quantizer is not None
        if layer.weight.numel() >= 512:
            original = layer.parametrizations["weight"].original  # type: ignore[index, union-attr]
            wanted.append(quantizer.codes(original).detach().numpy().astype(np.int8))
    assert len(wanted) == len(stored)
    for codes in wanted:
        assert any(codes.shape == found.shape and np.array_equal(codes, found) for found in stored.values())


@pytest.mark.parametrize("runtime", [onnxruntime, openvino])
def test_the_file_computes_what_the_model_computes(
    files: dict[int, tuple[torch.nn.Module, Path]], runtime: object
) -> None:
    model, path = files[4]
    inputs = inputs_of(NAME, 9, seed=3)
    with torch.no_grad():
        wanted = surgery.call(model.eval(), tensors(inputs))
    name = runtime.__name__.rpartition(".")[2]  # type: ignore[attr-defined]
    found = runtime.open_file(path, Target(name))(inputs)  # type: ignore[attr-defined]
    for key, value in wanted.items():
        assert relative_error(found[key], value.numpy()) < 1e-2
