"""MobileNetV2 of width 1 at 224 pixels, batch norm folded, with the arithmetic of Keras.

Sandler et al. 2018, "MobileNetV2: inverted residuals and linear bottlenecks" (arXiv 1801.04381), table 2: a 3x3
convolution, 17 blocks (1x1 expansion by 6, depthwise 3x3, 1x1 projection without activation, and the block's input
added where shapes match), a 1x1 convolution, the mean over space, the classifier. ReLU6 after all others. As in Keras,
convolutions of stride 2 pad one row below and one column on the right only.

Its weights may be stored as 8-bit codes with a scale per output channel, ``stem.weight_int8`` and
``stem.weight_scale``; and its classifier may know a class 0, the background, which is left out.
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

_CLASSES = 1000
_EXPANSION = 6
_STAGES = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
"""Output channels, blocks, and the stride of the first of them; the first stage does not expand."""
_CODES, _SCALE = ".weight_int8", ".weight_scale"


class Block(nn.Module):
    def __init__(self, channels: int, expansion: int, out: int, stride: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.adds = stride == 1 and channels == out
        self.expand = nn.Conv2d(channels, wide, 1) if expansion > 1 else None
        self.dw = nn.Conv2d(wide, wide, 3, stride, padding=2 - stride, groups=wide)
        self.project = nn.Conv2d(wide, out, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n out h/s w/s"]:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = F.relu6(self.dw(_padded(y, self.dw)))
        y = self.project(y)
        return x + y if self.adds else y  # type: ignore[no-any-return]


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2)
        channels, self.blocks = 32, 0
        for stage, (out, repeats, stride) in enumerate(_STAGES):
            for i in range(repeats):
                block = Block(channels, _EXPANSION if stage else 1, out, 1 if i else stride)
                self.add_module(f"block{self.blocks}", block)
                channels, self.blocks = out, self.blocks + 1
        self.head = nn.Conv2d(channels, 1280, 1)
        self.classifier = nn.Conv2d(1280, _CLASSES, 1)

    def forward(self, x: Float[Tensor, "n 3 224 224"]) -> Float[Tensor, "n 1000"]:
        x = F.relu6(self.stem(_padded(x, self.stem)))  # n 32 112 112
        for i in range(self.blocks):
            x = getattr(self, f"block{i}")(x)
        x = torch.mean(F.relu6(self.head(x)), (2, 3), keepdim=True)  # n 1280 1 1
        return torch.flatten(self.classifier(x), 1)  # n 1000


def _padded(x: Tensor, convolution: nn.Conv2d) -> Tensor:
    return F.pad(x, (0, 1, 0, 1)) if convolution.stride[0] == 2 else x


def _floats(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Codes times scales, and the classifier without the background."""
    found = {name: tensor for name, tensor in weights.items() if not name.endswith((_CODES, _SCALE))}
    for name, codes in weights.items():
        scale = weights.get(name.removesuffix(_CODES) + _SCALE)
        if name.endswith(_CODES) and scale is not None and scale.shape == codes.shape[:1]:
            each = scale.reshape(-1, *[1] * (codes.ndim - 1))
            found[name.removesuffix(_CODES) + ".weight"] = codes * each
    for name in ("classifier.weight", "classifier.bias"):
        if name in found and len(found[name]) == _CLASSES + 1:
            found[name] = found[name][1:]
    return found


MOBILENET_V2 = Entry(
    build=MobileNetV2,
    preprocess=Preprocess(resize=227, crop=(224, 224), divide=127.5, mean=(1.0,)),
    input_shape=(3, 224, 224),
    labels=imagenet.labels(),
    paper="Sandler et al. 2018 (arXiv 1801.04381)",
    adapt=_floats,
)
