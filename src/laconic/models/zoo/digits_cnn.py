"""A small convolutional network for 8x8 digits, of any width: the network of ``laconic demo``.

Three 3x3 convolutions of W, 2W and 4W channels with batch norm and ReLU, a 2x2 max pool before the third, the mean
over space and a linear layer. No paper: it is the plainest network that reaches 98 % on scikit-learn's digits.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from laconic.core import Preprocess
from laconic.models.zoo.entry import Entry


class DigitsCNN(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.fc = nn.Linear(4 * width, 10)

    def forward(self, x: Float[Tensor, "n 1 8 8"]) -> Float[Tensor, "n 10"]:
        x = F.relu(self.bn1(self.conv1(x)))  # n w 8 8
        x = F.relu(self.bn2(self.conv2(x)))  # n 2w 8 8
        x = F.max_pool2d(x, 2)  # n 2w 4 4
        x = F.relu(self.bn3(self.conv3(x)))  # n 4w 4 4
        return self.fc(torch.mean(x, (2, 3)))  # type: ignore[no-any-return]  # n 10


def entry(width: int) -> Entry:
    return Entry(
        build=partial(DigitsCNN, width),
        preprocess=Preprocess(channels="L", resize=(8, 8)),
        input_shape=(1, 8, 8),
        labels=tuple("0123456789"),
        paper="none",
    )
