"""Hashed weights in the ONNX file: their numbers alone, and the same to the bit when a runtime has opened it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from laconic import hashing, models, surgery
from laconic.core import Recipe, Target
from laconic.pack import container
from laconic.runtime import onnx_file, onnx_hashed, onnxruntime, openvino
from laconic.steps.cluster.hashed import HashedNets
from tests.networks import context, inputs_of, network, task_for
from tests.opened import opened_weights

TARGET = Target("onnxruntime", batch=5)


class Wide(nn.Module):
    """More weights than P in a layer, a layer that is called twice, and one of few weights."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Flatten()
        self.first = nn.Linear(192, 300)
        self.again = nn.Linear(300, 300)
        self.last = nn.Linear(300, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(self.flat(x)))
        y: torch.Tensor = self.last(torch.relu(self.again(torch.relu(self.again(x)))))
        return y


def hashed(model: nn.Module, ratio: float) -> nn.Module:
    changed: nn.Module = Recipe((HashedNets(ratio),)).apply(model, task_for("plain"), context())[0]
    return changed.eval()


def agrees(model: nn.Module, path: Path) -> None:
    inputs = inputs_of("plain", 5, seed=4)
    with torch.no_grad():
        wanted = model(torch.as_tensor(next(iter(inputs.values())))).numpy()
    for runtime in (onnxruntime, openvino):
        (found,) = runtime.open_file(path, TARGET)(inputs).values()
        np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def opens_to_the_bit(model: nn.Module, path: Path) -> None:
    opened = [array.T if array.ndim == 2 else array for array in opened_weights(path)]
    opened += [array.T for array in opened]
    for name, layer in surgery.weighted_layers(model).items():
        weight = layer.weight.detach().numpy()
        assert any(a.shape == weight.shape and a.tobytes() == weight.tobytes() for a in opened), name


@pytest.mark.parametrize("ratio", [1 / 8, 1 / 64])
def test_the_file_holds_the_numbers_alone(ratio: float, tmp_path: Path) -> None:
    model, path = hashed(Wide(), ratio), tmp_path / "f.onnx"
    told = onnxruntime.deploy(model, inputs_of("plain", 2, seed=0), path, TARGET)
    onnx.checker.check_model(str(path))
    weights = {name: layer.weight.numel() for name, layer in surgery.weighted_layers(model).items()}
    assert set(told["codebook_bits"]) == {f"{name}.weight" for name in weights}
    assert told["codebook_bits"]["first.weight"] == pytest.approx(32 * ratio, rel=0.01)
    assert path.stat().st_size < 4 * sum(round(ratio * n) for n in weights.values()) + 4 * 604 + 3000
    assert told["operators"]["Range"] == 1  # the hash is written once
    opens_to_the_bit(model, path)
    agrees(model, path)


def test_packed_it_is_as_small_as_its_numbers(tmp_path: Path) -> None:
    model, path = hashed(Wide(), 1 / 64), tmp_path / "f.onnx"
    onnxruntime.deploy(model, inputs_of("plain", 2, seed=0), path, TARGET)
    packed = container.pack_file(path)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert packed.payload < 4 * numbers
    assert len(packed.content) - packed.payload < 600


def test_convolutions_and_their_batch_norms(tmp_path: Path) -> None:
    model, path = hashed(network("plain"), 0.25), tmp_path / "f.onnx"
    told = onnxruntime.deploy(model, inputs_of("plain", 2, seed=0), path, TARGET)
    assert "conv2.weight" in told["codebook_bits"]
    agrees(model, path)


def test_in_a_network_that_came_from_an_onnx_file(tmp_path: Path) -> None:
    onnx_file.deploy(Wide().eval(), inputs_of("plain", 2, seed=0), tmp_path / "whole.onnx")
    model = hashed(models.load(str(tmp_path / "whole.onnx")).module, 1 / 8)
    told = onnx_file.deploy(model, inputs_of("plain", 2, seed=0), tmp_path / "f.onnx")
    assert len(told["codebook_bits"]) == 3
    assert (tmp_path / "f.onnx").stat().st_size < 0.2 * (tmp_path / "whole.onnx").stat().st_size
    opens_to_the_bit(model, tmp_path / "f.onnx")


def test_a_weight_that_is_not_what_the_hash_says_is_stored_otherwise() -> None:
    table = np.random.default_rng(0).standard_normal(40).astype(np.float32)
    weight = np.concatenate([table, -table])[hashing.places(3000, 40)].reshape(30, 100)
    found = onnx_hashed.shared(weight, 40)
    assert found is not None
    assert np.array_equal(found.table, table)
    weight[7, 7] = np.nextafter(weight[7, 7], np.float32(9))
    assert onnx_hashed.shared(weight, 40) is None
