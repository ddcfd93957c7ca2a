"""ResNet-20, -32 and -56 for CIFAR-10.

He, Zhang, Ren and Sun 2015, "Deep residual learning for image recognition" (arXiv 1512.03385), section 4.2: a 3x3
convolution, three stages of n basic blocks with 16, 32 and 64 channels (depth 6n + 2), the mean over space, a linear
layer. Shortcuts are of option A: no parameters. Parameter names are those of akamaster/pytorch_resnet_cifar10, whose
trained weights load as they are.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from laconic.core import Preprocess
from laconic.models.zoo.entry import Entry

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Shortcut(nn.Module):
    """Option A: every second row and column, and zero channels, half of them before and half after."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.out_channels = out_channels
        self.before = (out_channels - channels) // 2
        self.after = out_channels - channels - self.before

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n out h/2 w/2"]:
        x = x[:, :, ::2, ::2]  # n c h/2 w/2
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))  # n out h/2 w/2

    def as_convolution(self) -> nn.Conv2d:
        """The same map as a 1x1 convolution of stride 2 with zeros and ones.

        Pruning needs it: in a convolution, input and output channels can go one by one.
        """
        convolution = nn.Conv2d(self.channels, self.out_channels, 1, stride=2, bias=False)
        rows = torch.arange(self.channels)
        with torch.no_grad():
            convolution.weight.zero_()
            convolution.weight[self.before + rows, rows] = 1.0
        return convolution


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut around them."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity() if stride == 1 else Shortcut(channels, out_channels)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n out h/s w/s"]:
        y = F.relu(self.bn1(self.conv1(x)))  # n out h/s w/s
        y = self.bn2(self.conv2(y))  # n out h/s w/s
        return F.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """Depth 6n + 2."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        n = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, n, stride=1)
        self.layer2 = _stage(16, 32, n, stride=2)
        self.layer3 = _stage(32, 64, n, stride=2)
        self.linear = nn.Linear(64, 10)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Float[Tensor, "n 3 32 32"]) -> Float[Tensor, "n 10"]:
        x = F.relu(self.bn1(self.conv1(x)))  # n 16 32 32
        x = self.layer3(self.layer2(self.layer1(x)))  # n 64 8 8
        return self.linear(torch.mean(x, (2, 3)))  # type: ignore[no-any-return]  # n 10


def _stage(channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


def entry(depth: int) -> Entry:
    return Entry(
        build=partial(CifarResNet, depth),
        preprocess=Preprocess(resize=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        input_shape=(3, 32, 32),
        labels=LABELS,
        paper="He et al. 2015 (arXiv 1512.03385), section 4.2",
    )
