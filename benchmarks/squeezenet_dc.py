"""SqueezeNet 1.0 after Deep Compression, as its authors published it, as a torch network whose weights share values.

Han et al. 2015 (arXiv 1510.00149) applied to Iandola et al. 2016 (arXiv 1602.07360): a third of the weights is left,
and each layer has at most 256 different ones. Their file has 675,763 bytes.
"""

from __future__ import annotations

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks import records
from laconic.models.zoo.squeezenet import Fire

PUBLISHED_BYTES = 675_763
_WEIGHTS = "imagenet/squeezenet1_0_deep_compression.safetensors"
_FIRES = ((96, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128), (256, 48, 192), (384, 48, 192), (384, 64, 256),
          (512, 64, 256))  # fmt: skip
_POOLS_AFTER = (4, 8)


class _SqueezeNet10(nn.Module):
    """Version 1.0; the layers' names are those of laconic's version 1.1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 7, stride=2)
        for i, channels in enumerate(_FIRES, start=2):
            self.add_module(f"fire{i}", Fire(*channels))
        self.conv10 = nn.Conv2d(512, 1000, 1)

    def forward(self, x: Tensor) -> Tensor:  # n 3 227 227 -> n 1000
        x = F.max_pool2d(F.relu(self.conv1(x)), 3, stride=2, ceil_mode=True)
        for i in range(2, 2 + len(_FIRES)):
            x = getattr(self, f"fire{i}")(x)
            if i in _POOLS_AFTER:
                x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
        return torch.mean(F.relu(self.conv10(x)), (2, 3))


class _Shared(nn.Module):
    """The mark of a weight that holds few values: such a weight is deployed as codes and a codebook."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight


def load() -> nn.Module:
    """The network, its weights looked up in their codebooks."""
    stored = safetensors.torch.load_file(records.data(_WEIGHTS))
    weights = {}
    for name, tensor in stored.items():
        layer, kind = name.replace("/", ".").rsplit(".", 1)
        if kind == "bias":
            weights[f"{layer}.bias"] = tensor
        elif kind == "code":
            weights[f"{layer}.weight"] = stored[name.removesuffix("code") + "codebook"][tensor.long()]
    model = _SqueezeNet10()
    model.load_state_dict(weights)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            parametrize.register_parametrization(module, "weight", _Shared())
    return model.eval()
