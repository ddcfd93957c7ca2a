"""SqueezeNet 1.1 with the layer names, the input and the arithmetic of Caffe.

Iandola et al. 2016, "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and < 0.5 MB model size" (arXiv
1602.07360), in the authors' version 1.1: a 3x3 convolution of 64 channels, eight fire modules (a 1x1 convolution that
squeezes, then a 1x1 and a 3x3 side by side), max pools that round up, a 1x1 convolution as classifier, ReLU, the mean
over space. It takes BGR pixels of 0..255 less 104, 117, 123. Caffe writes ``fire2/squeeze1x1``, here it is
``fire2.squeeze1x1``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from laconic.core import Preprocess
from laconic.models.zoo import imagenet
from laconic.models.zoo.entry import Entry

_FIRES = ((64, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128), (256, 48, 192), (384, 48, 192), (384, 64, 256),
          (512, 64, 256))  # fmt: skip
"""Channels in, squeezed, and of either expansion, of fire 2 to 9."""
_POOLS_AFTER = (3, 5)


class Fire(nn.Module):
    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n out h w"]:
        x = F.relu(self.squeeze1x1(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2)
        for i, channels in enumerate(_FIRES, start=2):
            self.add_module(f"fire{i}", Fire(*channels))
        self.conv10 = nn.Conv2d(512, 1000, 1)

    def forward(self, x: Float[Tensor, "n 3 227 227"]) -> Float[Tensor, "n 1000"]:
        x = _pool(F.relu(self.conv1(x)))  # n 64 56 56
        for i in range(2, 2 + len(_FIRES)):
            x = getattr(self, f"fire{i}")(x)
            if i in _POOLS_AFTER:
                x = _pool(x)
        return torch.mean(F.relu(self.conv10(x)), (2, 3))  # n 1000


def _pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=2, ceil_mode=True)


def _dotted(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("/", "."): tensor for name, tensor in weights.items()}


SQUEEZENET_1_1 = Entry(
    build=SqueezeNet,
    preprocess=Preprocess(channels="BGR", resize=227, crop=(227, 227), divide=1.0, mean=(104.0, 117.0, 123.0)),
    input_shape=(3, 227, 227),
    labels=imagenet.labels(),
    paper="Iandola et al. 2016 (arXiv 1602.07360), version 1.1",
    adapt=_dotted,
)
