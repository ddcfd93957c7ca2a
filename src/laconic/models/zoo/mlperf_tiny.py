"""The reference networks of MLPerf Tiny for images and for spoken words, with their own arithmetic.

Banbury et al. 2021, "MLPerf Tiny benchmark" (arXiv 2106.07597). ``mlperf-tiny-resnet-8`` is a ResNet of three blocks
for CIFAR-10, batch norm folded into its convolutions; it takes pixels as they are, 0..255. ``mlperf-tiny-ds-cnn`` is
the depthwise separable network of Zhang et al. 2017, "Hello edge" (arXiv 1711.07128); it takes 49 frames of 10 MFCC.

As in TensorFlow, what a stride leaves over is padded below and on the right. Both read the benchmark's own weights: the
ResNet's layers are numbered in the order in which they run, ``03.conv.weight`` is our ``conv.3.weight``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from laconic.core import Preprocess
from laconic.models.zoo.entry import Entry

_CONVOLUTIONS = ((3, 16, 3, 1), (16, 16, 3, 1), (16, 16, 3, 1), (16, 32, 3, 2), (32, 32, 3, 1), (16, 32, 1, 2),
                 (32, 64, 3, 2), (64, 64, 3, 1), (32, 64, 1, 2))  # fmt: skip
"""Channels in and out, kernel and stride of ``conv.0`` to ``conv.8``; 5 and 8 are the shortcuts."""
_NUMBERED = re.compile(r"(\d\d)\.(conv|fc)\.")
_PAPER = "Banbury et al. 2021 (arXiv 2106.07597)"


class ResNet8(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ModuleList(
            nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2 if stride == 1 else 0)
            for channels, out, kernel, stride in _CONVOLUTIONS
        )
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Float[Tensor, "n 3 32 32"]) -> Float[Tensor, "n 10"]:
        x = F.relu(self.conv[0](x))  # n 16 32 32
        x = F.relu(x + self.conv[2](F.relu(self.conv[1](x))))
        y = self.conv[4](F.relu(self.conv[3](F.pad(x, (0, 1, 0, 1)))))  # n 32 16 16
        x = F.relu(self.conv[5](x) + y)
        y = self.conv[7](F.relu(self.conv[6](F.pad(x, (0, 1, 0, 1)))))  # n 64 8 8
        x = F.relu(self.conv[8](x) + y)
        return self.fc(torch.mean(x, (2, 3)))  # type: ignore[no-any-return]  # n 10


class DSCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._add("conv1", nn.Conv2d(1, 64, (10, 4), stride=2))
        for i in range(1, 5):
            self._add(f"dw{i}", nn.Conv2d(64, 64, 3, padding=1, groups=64))
            self._add(f"pw{i}", nn.Conv2d(64, 64, 1))
        self.fc = nn.Linear(64, 12)

    def _add(self, name: str, convolution: nn.Conv2d) -> None:
        self.add_module(name, convolution)
        self.add_module(f"{name}_bn", nn.BatchNorm2d(64, eps=1e-3))

    def forward(self, x: Float[Tensor, "n 1 49 10"]) -> Float[Tensor, "n 12"]:
        x = self._layer("conv1", F.pad(x, (1, 1, 4, 5)))  # n 64 25 5
        for i in range(1, 5):
            x = self._layer(f"pw{i}", self._layer(f"dw{i}", x))
        x = F.avg_pool2d(x, (24, 5))  # n 64 1 1: the last of the 25 rows is left out
        return self.fc(torch.flatten(x, 1))  # type: ignore[no-any-return]  # n 12

    def _layer(self, name: str, x: Tensor) -> Tensor:
        return F.relu(getattr(self, f"{name}_bn")(getattr(self, name)(x)))


def _unnumbered(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``03.conv.weight`` as ``conv.3.weight``, ``09.fc.bias`` as ``fc.bias``."""

    def name(match: re.Match[str]) -> str:
        return "fc." if match[2] == "fc" else f"conv.{int(match[1])}."

    return {_NUMBERED.sub(name, key): tensor for key, tensor in weights.items()}


RESNET_8 = Entry(
    build=ResNet8,
    preprocess=Preprocess(resize=(32, 32), divide=1.0),
    input_shape=(3, 32, 32),
    labels=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    paper=_PAPER,
    adapt=_unnumbered,
)
DS_CNN = Entry(
    build=DSCNN,
    preprocess=None,
    input_shape=(1, 49, 10),
    labels=("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes", "silence", "unknown"),
    paper=f"{_PAPER}; Zhang et al. 2017 (arXiv 1711.07128)",
)
