from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from laconic.data import apply
from laconic.errors import ModelError
from laconic.models import load
from laconic.models.zoo import ZOO
from laconic.models.zoo.cifar_resnet import Shortcut

PARAMETERS = {
    "lenet-300-100": 266_610,
    "lenet-5-caffe": 431_080,
    "cifar-resnet-20": 269_722,  # 0.27 M, 0.46 M, 0.85 M in the paper
    "cifar-resnet-32": 464_154,
    "cifar-resnet-56": 853_018,
    "mobilenet-v1-0.25-128": 470_072,
    "mobilenet-v1-1.0-224": 4_231_976,  # 4.2 M in the paper
    "mobilenet-v2-1.0-224": 3_504_872 - 17_056,  # torchvision's count, less one of batch norm's two rows
    "squeezenet-1.1": 1_235_496,  # torchvision's
    "mlperf-tiny-resnet-8": 78_666 - 960,  # Keras's count, less batch norm's
    "mlperf-tiny-ds-cnn": 23_756,  # Keras's
    "digits-cnn-16": 24_058,
    "vit-fashion": 474_058,
    "vgg-fashion": 9 * (32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128) + 2 * (32 + 2 * 64 + 2 * 128) + 1290,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name: str) -> None:
    assert sum(p.numel() for p in ZOO[name].build().parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", ZOO)
def test_entry(name: str) -> None:
    entry = ZOO[name]
    output = entry.build().eval()(torch.zeros(1, *entry.input_shape))
    assert output.shape == (1, len(entry.labels))
    assert len(set(entry.labels)) == len(entry.labels)
    assert entry.preprocess is None or entry.preprocess.crop in (None, entry.input_shape[1:])


@pytest.mark.parametrize("name", ["lenet-5-caffe", "cifar-resnet-20", "mobilenet-v1-0.25-128"])
def test_exports_with_a_free_batch(name: str, export: Callable[..., str]) -> None:
    loaded = load(export(ZOO[name].build().eval(), ZOO[name].input_shape, dynamo=True))
    assert getattr(loaded.module, "fixed_batch", 0) is None


def test_squeezenet_is_that_of_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision")
    found, wanted = ZOO["squeezenet-1.1"].build().eval(), torchvision.models.squeezenet1_1().eval()
    found.load_state_dict(dict(zip(found.state_dict(), wanted.state_dict().values(), strict=True)))
    x = 10 * torch.randn(1, 3, 97, 97)
    torch.testing.assert_close(found(x), wanted(x))


def test_weights_of_8_bits_are_codes_times_scales_without_the_background(tmp_path: Path) -> None:
    state = ZOO["mobilenet-v2-1.0-224"].build().state_dict()
    stored = {name: value for name, value in state.items() if name.endswith("bias")}
    for name in [name for name in state if name.endswith("weight")]:
        rows = 1001 if name.startswith("classifier") else len(state[name])
        shape = (rows, *state[name].shape[1:])
        stored[f"{name}_int8"] = torch.randint(-127, 128, shape, dtype=torch.int8)
        stored[f"{name}_scale"] = torch.rand(rows)
    stored["classifier.bias"] = torch.arange(1001.0)
    path = tmp_path / "weights.safetensors"
    save_file(stored, path)
    found = load(f"zoo:mobilenet-v2-1.0-224@{path}").module.state_dict()
    assert found["stem.weight"][5].equal(stored["stem.weight_int8"][5] * float(stored["stem.weight_scale"][5]))
    assert found["classifier.bias"].equal(torch.arange(1, 1001.0))
    assert found["classifier.weight"][0, :, 0, 0].equal(
        stored["classifier.weight_int8"][1, :, 0, 0] * float(stored["classifier.weight_scale"][1])
    )
    save_file(stored | {"stem.weight_scale": torch.rand(31)}, path)
    with pytest.raises(ModelError, match=r"1 missing \(stem\.weight\)"):
        load(f"zoo:mobilenet-v2-1.0-224@{path}")


def test_shortcut_is_a_convolution() -> None:
    x = torch.randn(2, 16, 8, 8)
    shortcut = Shortcut(16, 32)
    assert torch.equal(shortcut.as_convolution()(x), shortcut(x))
    assert shortcut(x)[:, 8:24].equal(x[:, :, ::2, ::2])


@pytest.mark.parametrize("depth", [20, 32, 56])
def test_cifar_resnet_on_real_pictures(depth: int, data: Path) -> None:
    loaded = load(f"zoo:cifar-resnet-{depth}@{data}/cifar10/resnet{depth}.safetensors")
    strip = Image.open(data / "cifar10/lossless_test1000.png").crop((0, 0, 32, 32 * 200))
    pixels = torch.tensor(np.asarray(strip)).reshape(-1, 32, 32, 3)
    preprocess = loaded.preprocess
    assert preprocess is not None
    x = (pixels / preprocess.divide - torch.tensor(preprocess.mean)) / torch.tensor(preprocess.std)
    with torch.no_grad():
        found = loaded.module(x.permute(0, 3, 1, 2)).argmax(1).numpy()
    wanted = np.load(data / "cifar10/lossless_test1000_labels.npy")[:200]
    assert (found == wanted).mean() >= 0.88


def test_mlperf_tiny_on_real_data(data: Path) -> None:
    tiny = data / "mlperf-tiny"
    images = load(f"zoo:mlperf-tiny-resnet-8@{tiny}/ic_resnet8_float.safetensors").module
    strip = Image.open(data / "cifar10/lossless_test1000.png").crop((0, 0, 32, 32 * 200))
    pixels = torch.tensor(np.asarray(strip), dtype=torch.float32).reshape(-1, 32, 32, 3)
    wanted = np.load(data / "cifar10/lossless_test1000_labels.npy")[:200]
    stored = np.load(tiny / "kws_mfcc_test1000.npz")
    words = load(f"zoo:mlperf-tiny-ds-cnn@{tiny}/kws_dscnn_float.safetensors")
    assert [word.lower() for word in stored["classes"]] == list(words.labels)
    features = torch.tensor((stored["x"].astype(np.float32) - stored["zero_point"]) * stored["scale"])
    with torch.no_grad():
        assert (images(pixels.permute(0, 3, 1, 2)).argmax(1).numpy() == wanted).mean() >= 0.86
        found = words.module(features.permute(0, 3, 1, 2).float()).argmax(1).numpy()
    assert (found == stored["y"]).mean() == pytest.approx(0.915, abs=0.002)


@pytest.mark.parametrize(
    ("name", "weights", "right", "loss"),
    [
        ("mobilenet-v2-1.0-224", "mobilenet_v2_1.0_224_int8w", 0.7, 1.0260),  # 1.0284 if padded on the left and above
        ("squeezenet-1.1", "squeezenet1_1_fp16", 0.65, 1.4830),
    ],
)
def test_imagenet_networks_on_real_pictures(name: str, weights: str, right: float, loss: float, data: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    loaded = load(f"zoo:{name}@{data}/imagenet/{weights}.safetensors")
    batch = next(parquet.ParquetFile(data / "imagenet/val1300_227.parquet").iter_batches(40)).to_pylist()
    assert loaded.preprocess is not None
    x = np.stack([apply(Image.open(io.BytesIO(row["image"])), loaded.preprocess) for row in batch])
    with torch.no_grad():
        found = loaded.module(torch.tensor(x))
    wanted = torch.tensor([row["label"] for row in batch])
    assert (found.argmax(1) == wanted).float().mean() >= right
    assert float(F.cross_entropy(found, wanted)) == pytest.approx(loss, abs=1e-3)


def test_mobilenet_on_real_pictures(data: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    loaded = load(f"zoo:mobilenet-v1-0.75-224@{data}/imagenet/mobilenet_v1_0.75_224.safetensors")
    batch = next(parquet.ParquetFile(data / "imagenet/val1300_227.parquet").iter_batches(40)).to_pylist()
    pictures = [Image.open(io.BytesIO(row["image"])).convert("RGB").crop((1, 1, 225, 225)) for row in batch]
    x = torch.tensor(np.stack([np.asarray(p) for p in pictures])) / 127.5 - 1
    with torch.no_grad():
        found = loaded.module(x.permute(0, 3, 1, 2))
    wanted = torch.tensor([row["label"] for row in batch])
    assert (found.argmax(1) == wanted).float().mean() >= 0.7
    assert F.cross_entropy(found, wanted) < 1.3  # 1.22; 1.38 if padded on the left and above
