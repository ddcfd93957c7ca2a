"""A small VGG for pictures of 28x28 or 32x32: plain 3x3 convolutions, on which factorization is measured.

Simonyan and Zisserman 2014, "Very deep convolutional networks for large-scale image recognition" (arXiv 1409.1556),
configuration A narrowed and cut to three stages of 32, 64 and 128 channels, with batch normalisation, and the mean over
space in place of the hidden linear layers. 279,050 parameters for one input channel; 22 M MACs at 28x28.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from laconic.core import Preprocess
from laconic.models.zoo.cifar_resnet import LABELS
from laconic.models.zoo.entry import Entry
from laconic.models.zoo.vit import VIT_FASHION

_PLAN = (32, 0, 64, 64, 0, 128, 128)
"""Channels of each convolution; 0 halves the picture."""


class VGG(nn.Module):
    """``channels`` of the pictures in, the logits of 10 classes out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for i, out in enumerate(filter(None, _PLAN), start=1):
            self.add_module(f"conv{i}", nn.Conv2d(channels, out, 3, padding=1, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(out))
            channels = out
        self.head = nn.Linear(channels, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 10"]:
        i = 0
        for out in _PLAN:
            if out:
                i += 1
                x = F.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
            else:
                x = F.max_pool2d(x, 2)
        return self.head(torch.mean(x, (2, 3)))  # type: ignore[no-any-return]  # n 10


VGG_FASHION = Entry(
    build=partial(VGG, 1),
    preprocess=VIT_FASHION.preprocess,
    input_shape=(1, 28, 28),
    labels=VIT_FASHION.labels,
    paper="Simonyan and Zisserman 2014 (arXiv 1409.1556), configuration A, narrow, with batch norm",
)
VGG_CIFAR = Entry(
    build=partial(VGG, 3),
    preprocess=Preprocess(resize=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    input_shape=(3, 32, 32),
    labels=LABELS,
    paper=VGG_FASHION.paper,
)
