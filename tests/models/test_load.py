from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from laconic.core import Preprocess
from laconic.errors import MissingExtraError, ModelError
from laconic.models import load
from laconic.models.zoo import ZOO


def save_weights(path: Path, module: nn.Module) -> str:
    save_file(module.state_dict(), path)
    return str(path)


@pytest.fixture
def lenet(tmp_path: Path) -> str:
    return save_weights(tmp_path / "lenet.safetensors", ZOO["lenet-5-caffe"].build())


def test_zoo_with_weights(tmp_path: Path) -> None:
    module = ZOO["digits-cnn-16"].build()
    path = save_weights(tmp_path / "w.safetensors", module)
    loaded = load(f"zoo:digits-cnn-16@{path}")
    assert loaded.note == ""
    assert loaded.input_names == ("x",)
    assert loaded.input_shape == (1, 8, 8)
    assert loaded.labels == tuple("0123456789")
    assert not loaded.module.training
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded.module(x), module.eval()(x))


def test_without_weights_they_are_random_and_the_same() -> None:
    one = load("zoo:lenet-300-100")
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    two = load("zoo:lenet-300-100")
    assert "random weights" in one.note
    assert one.fingerprint == two.fingerprint
    assert torch.equal(before, torch.random.get_rng_state())


def test_fingerprint_sees_weights_and_structure() -> None:
    one = load("zoo:lenet-300-100")
    with torch.no_grad():
        one.module.fc1.weight[0, 0] += 1e-6
    changed = type(one)(one.module, one.source)
    assert changed.fingerprint != one.fingerprint
    narrow, wide = nn.Conv2d(1, 1, 3, stride=1), nn.Conv2d(1, 1, 3, stride=2)
    wide.load_state_dict(narrow.state_dict())
    assert type(one)(narrow, "").fingerprint != type(one)(wide, "").fingerprint


def test_torchvision() -> None:
    loaded = load("torchvision:mobilenet_v3_small")
    assert loaded.preprocess == Preprocess(
        resize=256, crop=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    assert loaded.input_shape == (3, 224, 224)
    assert len(loaded.labels) == 1000
    assert "random weights" in loaded.note


def test_torchvision_with_a_second_classifier_gives_one_output() -> None:
    loaded = load("torchvision:googlenet")
    assert loaded.input_shape is not None
    with torch.no_grad():
        assert loaded.module(torch.zeros(1, *loaded.input_shape)).shape == (1, 1000)


def test_torchvision_with_other_classes(tmp_path: Path) -> None:
    from torchvision.models import squeezenet1_1

    path = save_weights(tmp_path / "w.safetensors", squeezenet1_1(weights=None, num_classes=7))
    loaded = load(f"torchvision:squeezenet1_1@{path}")
    with torch.no_grad():
        assert loaded.module(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    assert loaded.labels == ()


def test_timm() -> None:
    loaded = load("timm:test_vit")
    assert loaded.preprocess is not None
    assert loaded.input_shape == (3, *(loaded.preprocess.crop or ()))
    with torch.no_grad():
        assert loaded.module(torch.zeros(1, *loaded.input_shape)).shape == (1, len(loaded.labels))


@pytest.mark.parametrize(
    ("spec", "near"),
    [
        ("zoo:lenet-5", "lenet-5-caffe"),
        ("torchvision:resnet81", "resnet18"),
        ("timm:resnet81", "resnet18"),
    ],
)
def test_unknown_name_lists_near_ones(spec: str, near: str) -> None:
    with pytest.raises(ModelError, match=rf"got {spec.partition(':')[2]}, .*did you mean .*{near}"):
        load(spec)


@pytest.mark.parametrize("spec", ["keras:resnet", "resnet18", "model.tflite", ""])
def test_unknown_source(spec: str) -> None:
    with pytest.raises(ModelError, match=r"torchvision:NAME.*FILE\.py:FACTORY or FILE\.onnx"):
        load(spec)


@pytest.mark.parametrize("spec", ["model.pth", "zoo:lenet-5-caffe@w.pt", "torchvision:resnet18@w.ckpt", "w.bin"])
def test_pickle_is_refused_with_the_way_out(spec: str) -> None:
    with pytest.raises(ModelError, match=r"pickle.*torch.load\(.*weights_only=True\), '.*\.safetensors'\)"):
        load(spec)


@pytest.mark.parametrize(("module", "spec"), [("torchvision", "torchvision:alexnet"), ("timm", "timm:resnet18")])
def test_missing_extra(monkeypatch: pytest.MonkeyPatch, module: str, spec: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'laconic\[{module}\]'"):
        load(spec)


def test_missing_weights_file() -> None:
    with pytest.raises(ModelError, match=r"no such weights file: got none\.safetensors"):
        load("zoo:lenet-5-caffe@none.safetensors")


def test_corrupt_weights_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(ModelError, match="cannot be read"):
        load(f"zoo:lenet-5-caffe@{path}")


def test_weights_that_do_not_fit(tmp_path: Path, lenet: str) -> None:
    with pytest.raises(ModelError, match=r"2 missing \(fc3.weight, fc3.bias\); 4 unexpected \(.*, \.\.\.\); 4 shapes"):
        load(f"zoo:lenet-300-100@{lenet}")


def test_weights_with_nan(tmp_path: Path) -> None:
    module = ZOO["lenet-300-100"].build()
    with torch.no_grad():
        module.fc2.weight[3, 4] = torch.nan
    path = save_weights(tmp_path / "w.safetensors", module)
    with pytest.raises(ModelError, match=r"tensor fc2.weight: got 1 of 30000 values NaN"):
        load(f"zoo:lenet-300-100@{path}")


def write(tmp_path: Path, body: str) -> str:
    (tmp_path / "user.py").write_text(f"import torch\nfrom torch import nn\n\ndef make():\n    {body}\n")
    return f"{tmp_path / 'user.py'}:make"


def test_python_file(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, "return nn.Linear(3, 2).double().train()"))
    assert loaded.module(torch.zeros(1, 3)).dtype == torch.float32
    assert not loaded.module.training
    assert loaded.input_names == ("input",)
    assert loaded.input_shape is None


def test_python_file_without_a_module(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gave no model: got dict, wanted a torch\.nn\.Module"):
        load(write(tmp_path, "return {}"))


def test_python_file_that_fails(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"user\.py:5: ZeroDivisionError"):
        load(write(tmp_path, "return 1 / 0"))


def test_python_file_with_nan(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="tensor weight"):
        load(write(tmp_path, "m = nn.Linear(1, 1); m.weight.data[:] = torch.inf; return m"))
