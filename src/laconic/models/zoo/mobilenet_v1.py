"""MobileNetV1 of any width and resolution, with the layer names and the arithmetic of Keras.

Howard et al. 2017, "MobileNets: efficient convolutional neural networks for mobile vision applications" (arXiv
1704.04861): a 3x3 convolution, then 13 pairs of depthwise 3x3 and pointwise 1x1, each with batch norm and ReLU6.
``width`` is the paper's alpha. As in Keras, convolutions of stride 2 pad one row below and one column on the right
only, batch norm has epsilon 1e-3, and the classifier is a 1x1 convolution.

Pictures are resized to a shorter side of 227/224 of the resolution and cropped: 227x227 pictures get a plain crop.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from laconic.core import Preprocess
from laconic.models.zoo import imagenet
from laconic.models.zoo.entry import Entry

_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
"""Output channels at width 1, and stride, of blocks 1 to 13."""


class MobileNetV1(nn.Module):
    """The network at ``width``, for any resolution that 32 divides."""

    def __init__(self, width: float) -> None:
        super().__init__()
        channels = int(32 * width)
        self._convolution("conv1", 3, channels, 3, 2)
        for i, (wide, stride) in enumerate(_BLOCKS, start=1):
            self._convolution(f"conv_dw_{i}", channels, channels, 3, stride, groups=channels)
            self._convolution(f"conv_pw_{i}", channels, int(wide * width), 1, 1)
            channels = int(wide * width)
        self.conv_preds = nn.Conv2d(channels, 1000, 1)

    def _convolution(self, name: str, channels: int, out: int, kernel: int, stride: int, groups: int = 1) -> None:
        padding = 0 if stride == 2 else kernel // 2
        convolution = nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=False)
        self.add_module(name, convolution)
        self.add_module(f"{name}_bn", nn.BatchNorm2d(out, eps=1e-3))

    def forward(self, x: Float[Tensor, "n 3 r r"]) -> Float[Tensor, "n 1000"]:
        x = self._layer("conv1", F.pad(x, (0, 1, 0, 1)))  # n 32w r/2 r/2
        for i, (_, stride) in enumerate(_BLOCKS, start=1):
            padded = F.pad(x, (0, 1, 0, 1)) if stride == 2 else x
            x = self._layer(f"conv_pw_{i}", self._layer(f"conv_dw_{i}", padded))
        x = torch.mean(x, (2, 3), keepdim=True)  # n 1024w 1 1
        return torch.flatten(self.conv_preds(x), 1)  # n 1000

    def _layer(self, name: str, x: Tensor) -> Tensor:
        return F.relu6(getattr(self, f"{name}_bn")(getattr(self, name)(x)))


def entry(width: float, resolution: int) -> Entry:
    return Entry(
        build=partial(MobileNetV1, width),
        preprocess=Preprocess(
            resize=round(resolution * 227 / 224),
            crop=(resolution, resolution),
            divide=127.5,
            mean=(1.0,),
        ),
        input_shape=(3, resolution, resolution),
        labels=imagenet.labels(),
        paper="Howard et al. 2017 (arXiv 1704.04861)",
    )
