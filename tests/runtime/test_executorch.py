"""ExecuTorch: XNNPACK takes the whole network, in integers, and gives what the simulated model gives."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Recipe, Target
from laconic.errors import DeployError, MissingExtraError
from laconic.runtime import executorch
from laconic.runtime.difference import relative_error
from laconic.steps.quantize.post_training import Quantize
from tests.networks import context, inputs_of, network, task_for, tensors

TARGET = Target("executorch")


pytestmark = pytest.mark.skipif(find_spec("executorch") is None, reason="executorch is not installed")


@pytest.mark.parametrize("name", ["depthwise", "pair"])
def test_integers(name: str, tmp_path: Path) -> None:
    model, _ = Recipe((Quantize(),)).apply(network(name), task_for(name), context(traits=executorch.traits(TARGET)))
    path = tmp_path / "model.pte"
    facts = executorch.deploy(model, inputs_of(name, 2), path, TARGET)
    assert all(op.startswith("xnnpack:") for op in facts["operators"]), "nothing is left to the portable kernels"
    weighted = len(surgery.weighted_layers(model))
    assert facts["operators"]["xnnpack:quantized_decomposed.dequantize_per_channel.default"] == weighted
    x = inputs_of(name, 40, seed=3)
    found = executorch.open_file(path, TARGET)(x)
    with torch.no_grad():
        wanted = surgery.call(model, tensors(x))
    for key, y in wanted.items():
        assert relative_error(found[key], y.numpy()) < 5e-3


def test_a_layer_with_floats_on_one_side_is_computed_in_float(tmp_path: Path) -> None:
    model, _ = Recipe((Quantize(),)).apply(network("mlp"), task_for("mlp"), context())  # these traits keep logits float
    path, x = tmp_path / "model.pte", inputs_of("mlp", 20, seed=2)
    facts = executorch.deploy(model, x, path, TARGET)
    assert facts["operators"]["xnnpack:quantized_decomposed.dequantize_per_channel.default"] == 2
    with torch.no_grad():
        wanted = model(tensors(x)["x"]).numpy()
    assert relative_error(executorch.open_file(path, TARGET)(x)["output"], wanted) < 5e-3


class Means(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean((2, 3)), x.mean(1)


def test_means_and_threads(tmp_path: Path) -> None:
    from executorch.extension.pybindings import portable_lib

    path, x = tmp_path / "model.pte", inputs_of("plain", 3)
    executorch.deploy(Means(), x, path, TARGET)
    for threads in (2, 1):
        found = executorch.open_file(path, Target("executorch", threads=threads))(x)
        assert portable_lib._threadpool_get_thread_count() == threads
        for y, y_wanted in zip(found.values(), Means()(tensors(x)["x"]), strict=True):
            assert relative_error(y, y_wanted.numpy()) < 1e-6


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x[:, 0] @ x[:, 0].transpose(1, 2))


def test_an_operator_that_it_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="linalg_eigh") as caught:
        executorch.deploy(Unknown(), inputs_of("plain", 1), tmp_path / "model.pte", TARGET)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.pte").exists()


def test_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "executorch.exir", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'laconic\[executorch\]'"):
        executorch.deploy(network("mlp"), inputs_of("mlp", 1), tmp_path / "model.pte", TARGET)
