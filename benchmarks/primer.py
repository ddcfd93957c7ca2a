"""Makes ``src/laconic/pack/primer.bin``, from which the coder of structures learns before it codes (docs/format.md).

The primer is structures, one behind the other, of networks with random weights in the forms in which laconic deploys
them; no data are read. It belongs to the format: made anew, it makes files that were packed before unreadable, so once
laconic is released it stays as it is. The networks of the tables of packed sizes are not among them (inputs of
28 x 28 and ten classes are). What is nearest to a small network comes last, where it is remembered best.

    python -m benchmarks.primer    # writes the file, and says what of it is whose
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

import laconic.pack
from laconic import data, surgery
from laconic.core import Context, Recipe, Step, Target
from laconic.fake_quantize import FakeQuantize
from laconic.models.unpack import unpack
from laconic.models.zoo import ZOO
from laconic.pack import container
from laconic.runtime import onnx_file, onnxruntime
from laconic.steps.cluster.kmeans import Cluster
from laconic.steps.factorize.svd import LowRank
from laconic.steps.quantize.post_training import Quantize
from laconic.steps.quantize.weights import QuantizeWeights

PRIMER = Path(laconic.pack.__file__).with_name("primer.bin")
_TOP = 127


class Tokens(nn.Module):
    """Patches, a transformer layer, their mean, a linear layer: (n, 3, 16, 16) -> (n, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, stride=4)
        self.blocks = nn.ModuleList(
            [nn.TransformerEncoderLayer(24, 3, 40, activation="gelu", batch_first=True, norm_first=True)]
        )
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))  # type: ignore[no-any-return]


class Named(nn.Module):
    """Convolutions, each with 2 x 2 pooling, and linear layers with ReLU between, called conv1, fc1 and so on."""

    def __init__(self, convolutions: tuple[nn.Conv2d, ...], widths: tuple[int, ...]) -> None:
        super().__init__()
        self.names = [f"conv{i}" for i in range(1, len(convolutions) + 1)], [f"fc{i}" for i in range(1, len(widths))]
        linears = [nn.Linear(*pair) for pair in itertools.pairwise(widths)]
        for name, layer in zip((*self.names[0], *self.names[1]), (*convolutions, *linears), strict=True):
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.names[0]:
            x = F.max_pool2d(self.get_submodule(name)(x), 2)
        x = x.flatten(1)
        for name in self.names[1][:-1]:
            x = F.relu(self.get_submodule(name)(x))
        return self.get_submodule(self.names[1][-1])(x)  # type: ignore[no-any-return]


def convolutions(inputs: int, side: int, widths: tuple[int, ...], kernel: int, outputs: int) -> nn.Module:
    """Convolutions without padding, each with ReLU and 2 x 2 pooling, and a linear layer."""
    layers: list[nn.Module] = []
    for width in widths:
        side = (side - kernel + 1) // 2
        layers += [nn.Conv2d(inputs, width, kernel), nn.ReLU(), nn.MaxPool2d(2)]
        inputs = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs * side**2, outputs))


def padded(inputs: int, widths: tuple[int, ...], outputs: int) -> nn.Module:
    """Padded 3 x 3 convolutions of stride 2 with batch norm and ReLU, the mean over space, a linear layer."""
    layers: list[nn.Module] = []
    for width in widths:
        convolution = nn.Conv2d(inputs, width, 3, stride=2, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, outputs))


def dense(pool: int, *widths: int) -> nn.Module:
    """Linear layers with ReLU on averaged pixels."""
    layers: list[nn.Module] = [nn.AvgPool2d(pool)] if pool > 1 else []
    layers.append(nn.Flatten())
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def structures() -> Iterator[tuple[str, bytes]]:
    """What is learned, in its order."""
    quantized, clustered = (Quantize(),), (Cluster(bits=4),)
    tiny, gray, small = (3, 32, 32), (1, 28, 28), (1, 20, 20)
    yield "transformer, INT8", _structure(Tokens(), (3, 16, 16), quantized)
    yield "separable", _structure(ZOO["mlperf-tiny-ds-cnn"].build(), (1, 49, 10), quantized)
    yield "residual", _structure(ZOO["mlperf-tiny-resnet-8"].build(), tiny, quantized)
    yield "padded, INT8", _structure(padded(3, (12, 24, 48), 10), tiny, quantized)
    yield "padded, low rank", _structure(padded(3, (16, 32, 64), 100), tiny, (LowRank(ratio=0.5),))
    yield "padded, clustered", _structure(padded(3, (64, 96), 10), tiny, clustered)
    yield "padded, 2-bit weights", _structure(padded(3, (64, 96), 10), tiny, (QuantizeWeights(2),))
    yield "dense, clustered", _structure(dense(1, 400, 200, 80, 10), small, clustered)
    yield "convolutions", _structure(convolutions(1, 28, (8, 16), 3, 10), gray, ())
    yield "padded, rounded", _rounded(padded(3, (10, 18, 36), 10), tiny)
    yield "convolutions, rounded, color", _rounded(convolutions(3, 32, (8, 24), 5, 100), tiny)
    yield "convolutions, rounded, three", _rounded(convolutions(1, 28, (5, 9, 17), 3, 10), gray)
    yield "dense, rounded, small", _rounded(dense(2, 100, 40, 24, 6), small)
    yield "named, dense, rounded", _rounded(Named((), (784, 256, 128, 10)), gray)
    yield "named, rounded", _rounded(Named((nn.Conv2d(1, 16, 5), nn.Conv2d(16, 36, 5)), (576, 120, 10)), gray)
    yield "dense, rounded", _rounded(dense(1, 784, 48, 30, 10), gray)
    yield "convolutions, rounded", _rounded(convolutions(1, 28, (7, 15), 5, 10), gray)


def _rounded(model: nn.Module, shape: tuple[int, ...]) -> bytes:
    """Weights behind quantizers, as steps for small files leave them."""
    for layer in surgery.weighted_layers(model).values():
        step = layer.weight.detach().abs().max() / _TOP
        parametrize.register_parametrization(layer, "weight", FakeQuantize(step, torch.zeros(()), -_TOP, _TOP))
    return _structure(model, shape, (), short_codes=False)


def _structure(model: nn.Module, shape: tuple[int, ...], steps: tuple[Step, ...], short_codes: bool = True) -> bytes:
    x = np.random.default_rng(0).standard_normal((64, *shape)).astype(np.float32)
    task = data.from_arrays(x, np.arange(64) % 5, trainable=False)
    unpack(model)
    changed, _ = Recipe(steps).apply(model.eval(), task, Context(onnxruntime.traits(Target("onnxruntime"))))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        onnx_file.deploy(changed, {"input": x[:2]}, path, short_codes=short_codes)
        return container.structure_of(path.read_bytes(), ".onnx")


def main() -> None:
    torch.manual_seed(0)
    parts = []
    for name, part in structures():
        print(f"{len(part):6} {name}", flush=True)
        parts.append(part)
    PRIMER.write_bytes(b"".join(parts))
    print(f"{PRIMER.stat().st_size:6} in {PRIMER}")


if __name__ == "__main__":
    main()
