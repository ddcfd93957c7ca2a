"""LeNet-300-100 and Caffe's LeNet-5: the two networks on which compression has always been shown, on MNIST.

LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition"; in the forms used
since Han et al. 2015 (arXiv 1510.00149): 266,610 and 431,080 parameters. Caffe's LeNet-5 differs from the paper's: it
has 20 and 50 channels, max pooling, and a single ReLU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from laconic.core import Preprocess
from laconic.models.zoo.entry import Entry


class LeNet300100(nn.Module):
    """784 - 300 - 100 - 10 with ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, 10)

    def forward(self, x: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n 10"]:
        x = torch.flatten(x, 1)  # n 784
        x = F.relu(self.fc1(x))  # n 300
        x = F.relu(self.fc2(x))  # n 100
        return self.fc3(x)  # type: ignore[no-any-return]  # n 10


class LeNet5Caffe(nn.Module):
    """Two convolutions without activation, each with a 2x2 max pool, then 800 - 500 - 10 with one ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, x: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n 10"]:
        x = F.max_pool2d(self.conv1(x), 2)  # n 20 12 12
        x = F.max_pool2d(self.conv2(x), 2)  # n 50 4 4
        x = F.relu(self.fc1(torch.flatten(x, 1)))  # n 500
        return self.fc2(x)  # type: ignore[no-any-return]  # n 10


_MNIST = Preprocess(channels="L", resize=(28, 28))
_DIGITS = tuple("0123456789")
_PAPER = "LeCun et al. 1998, in the form of Han et al. 2015 (arXiv 1510.00149)"

LENET_300_100 = Entry(LeNet300100, _MNIST, (1, 28, 28), _DIGITS, _PAPER)
LENET_5_CAFFE = Entry(LeNet5Caffe, _MNIST, (1, 28, 28), _DIGITS, _PAPER)
