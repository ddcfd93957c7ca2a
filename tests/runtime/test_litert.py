"""LiteRT: the deployed file holds integer kernels, and gives what the simulated model gives."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Recipe, Target
from laconic.errors import DeployError, MissingExtraError
from laconic.fake_quantize import weight_quantizer
from laconic.runtime import litert
from laconic.runtime.difference import relative_error
from laconic.steps.quantize.post_training import Quantize
from tests.networks import context, inputs_of, network, task_for, tensors

TARGET = Target("litert")


pytestmark = pytest.mark.skipif(find_spec("litert_torch") is None, reason="litert-torch is not installed")


@pytest.mark.parametrize("name", ["depthwise", "pair"])
def test_integers(name: str, tmp_path: Path) -> None:
    traits = litert.traits(TARGET)
    model, _ = Recipe((Quantize(),)).apply(network(name), task_for(name), context(traits=traits))
    path = tmp_path / "model.tflite"
    facts = litert.deploy(model, inputs_of(name, 2), path, TARGET)
    operators = facts["operators"]
    weighted = [op for op in operators if op.split(":")[0] in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")]
    assert weighted
    assert all(op.endswith(":int8") for op in weighted)
    assert operators["QUANTIZE:int8"] == len(inputs_of(name, 1)), "one per input"
    check_padding(operators)
    x = inputs_of(name, 40, seed=3)
    found = litert.open_file(path, TARGET)(x)
    with torch.no_grad():
        wanted = surgery.call(model, tensors(x))
    for key, y in wanted.items():
        assert found[key].dtype == np.float32
        assert relative_error(found[key], y.numpy()) < 5e-3
    stored = {t.tobytes() for t in _tensors(path)}
    for layer in surgery.weighted_layers(model).values():
        codes = weight_quantizer(layer).codes(layer.weight).to(torch.int8).numpy()  # type: ignore[union-attr]
        turned = codes if codes.ndim == 2 else np.moveaxis(codes, 1, -1)  # TFLite: (out, height, width, in)
        depthwise = np.moveaxis(turned, 0, -1)
        assert {np.ascontiguousarray(t).tobytes() for t in (turned, depthwise)} & stored, "the codes, bit for bit"


def _tensors(path: Path) -> list[np.ndarray]:
    interpreter = litert._interpreter(path, 1, delegate=False)
    found = []
    for row in interpreter.get_tensor_details():
        if row["dtype"] == np.int8:
            try:
                found.append(interpreter.get_tensor(row["index"]))
            except ValueError:  # no constant: it lies nowhere yet
                continue
    return found


def test_float(tmp_path: Path) -> None:
    facts = litert.deploy(network("depthwise"), inputs_of("depthwise", 1), tmp_path / "model.tflite", TARGET)
    check_padding(facts["operators"])


def check_padding(operators: dict[str, int]) -> None:
    """The paddings are in the convolutions, and only the picture is transposed."""
    kinds = [op.split(":")[0] for op, n in operators.items() for _ in range(n)]
    assert "PAD" not in kinds
    assert kinds.count("TRANSPOSE") == 1


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x[:, 0] @ x[:, 0].transpose(1, 2))


def test_an_operator_that_it_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="linalg_eigh") as caught:
        litert.deploy(Unknown(), inputs_of("plain", 1), tmp_path / "model.tflite", TARGET)
    assert "\n" not in str(caught.value)


def test_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "litert_torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'laconic\[litert\]'"):
        litert.deploy(network("mlp"), inputs_of("mlp", 1), tmp_path / "model.tflite", TARGET)
