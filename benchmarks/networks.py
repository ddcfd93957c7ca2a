"""The networks that compression is measured on: each with its trained weights, and the public data as its task.

Calibration takes 128 samples (100 of the keywords); search and holdout are samples that the network was not trained on.
A network whose files are absent here is skipped, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks import records
from laconic import data, models
from laconic.core import JsonObject, Preprocess, Task
from laconic.data.image import normalise

_CALIBRATION = 128
_DRAWS = 16
_VIT = Path(__file__).resolve().parent / "checkpoints" / "vit-fashion.safetensors"


class Network(NamedTuple):
    """What ``laconic shrink`` would be told (``model``), the same opened, its task, the MLPerf Tiny int8 file of it,
    where there is one, and ``draws``: the task with other calibration samples, where there are enough."""

    model: str
    loaded: models.LoadedModel
    task: Task
    tflite: Path | None = None
    draws: tuple[Task, ...] = ()


def _imagenet(name: str, weights: str) -> Network:
    """1300 pictures of ImageNet's validation set: 128 for calibration, 300 search, 872 holdout."""
    model, loaded = _loaded(name, f"imagenet/{weights}.safetensors")
    pictures = records.data("imagenet/val1300_227.parquet")
    return Network(model, loaded, data.load(str(pictures), preprocess=loaded.preprocess, trainable=False))


def _cifar(name: str, weights: str, tflite: str | None = None) -> Network:
    """CIFAR-10, exact pixels: calibration from the first 4000 training pictures, 1000 test pictures halved."""
    model, loaded = _loaded(name, weights)
    assert loaded.preprocess is not None
    (x, y), test = _strip("train4000", loaded.preprocess), _strip("test1000", loaded.preprocess)
    tasks = [
        data.from_splits({"train": (x[start:], y[start:]), "val": test}, trainable=False, preprocess=loaded.preprocess)
        for start in range(0, _DRAWS * _CALIBRATION, _CALIBRATION)
    ]
    return Network(model, loaded, tasks[0], records.data(tflite) if tflite else None, tuple(tasks[1:]))


def _strip(name: str, preprocess: Preprocess) -> tuple[Any, Any]:
    picture = Image.open(records.data(f"cifar10/lossless_{name}.png"))
    labels = np.load(records.data(f"cifar10/lossless_{name}_labels.npy"))
    return normalise(np.asarray(picture).reshape(-1, 32, 32, 3), preprocess), labels


def _keywords() -> Network:
    """1000 utterances as MFCC: 100 for calibration (all that a tenth of them is), 300 search, 600 holdout."""
    model, loaded = _loaded("mlperf-tiny-ds-cnn", "mlperf-tiny/kws_dscnn_float.safetensors")
    stored = np.load(records.data("mlperf-tiny/kws_mfcc_test1000.npz"))
    x = (stored["x"].astype(np.float32) - stored["zero_point"]) * stored["scale"]  # n 49 10 1
    task = data.from_arrays(x.transpose(0, 3, 1, 2).astype(np.float32), stored["y"], trainable=False)
    return Network(model, loaded, task, records.data("mlperf-tiny/kws_dscnn_int8.tflite"))


def _fashion() -> Network:
    """Fashion-MNIST: calibration from its training pictures, 10,000 test pictures halved."""
    if not _VIT.exists():
        raise records.Skipped(f"{_VIT.name} is not there: python -m benchmarks.fashion")
    model = f"zoo:vit-fashion@{_VIT}"
    loaded = models.load(model)
    task = data.load(str(records.data("fashion-mnist")), preprocess=loaded.preprocess, trainable=False)
    return Network(model, loaded, task)


def _loaded(name: str, weights: str) -> tuple[str, models.LoadedModel]:
    model = f"zoo:{name}@{records.data(weights)}"
    return model, models.load(model)


NETWORKS: dict[str, Callable[[], Network]] = {
    "MLPerf Tiny ResNet-8, CIFAR-10": partial(
        _cifar, "mlperf-tiny-resnet-8", "mlperf-tiny/ic_resnet8_float.safetensors", "mlperf-tiny/ic_resnet8_int8.tflite"
    ),
    "MLPerf Tiny DS-CNN, keywords": _keywords,
    "ResNet-20, CIFAR-10": partial(_cifar, "cifar-resnet-20", "cifar10/resnet20.safetensors"),
    "ResNet-56, CIFAR-10": partial(_cifar, "cifar-resnet-56", "cifar10/resnet56.safetensors"),
    "transformer, Fashion-MNIST": _fashion,
    "MobileNetV1 0.75, ImageNet": partial(_imagenet, "mobilenet-v1-0.75-224", "mobilenet_v1_0.75_224"),
    "MobileNetV2 1.0, ImageNet": partial(_imagenet, "mobilenet-v2-1.0-224", "mobilenet_v2_1.0_224_int8w"),
    "SqueezeNet 1.1, ImageNet": partial(_imagenet, "squeezenet-1.1", "squeezenet1_1_fp16"),
}


def in_order(rows: list[JsonObject], names: Iterable[str] = NETWORKS) -> list[JsonObject]:
    """Rows in the order of their networks."""
    return sorted(rows, key=lambda row: list(names).index(row["network"]))
