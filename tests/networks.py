"""Small networks with every structure that compression has to get right, and a small task that they can learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic.core import Batch, Context, Metric, Preprocess, Task, Traits

CLASSES = 4
INTEGER = Traits(
    integer_operators=frozenset({"conv", "linear", "add", "avg_pool", "mean"}), float_output=True, weight_bits=8
)
"""The traits of a runtime with integer kernels."""


class Plain(nn.Module):
    """Convolutions with batch norm, with and without bias; max pooling; two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(12)
        self.fc1 = nn.Linear(12 * 4, 16)
        self.fc2 = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


class Block(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.down: nn.Module = nn.Identity()
        if stride > 1:
            self.down = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.down(x)
        return self.relu(y)


class Residual(nn.Module):
    """Blocks with additions, one of them with a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(Block(8, 8, 1), Block(8, 16, 2), Block(16, 16, 1))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.mean(self.blocks(self.stem(x)), (2, 3)))


class Depthwise(nn.Module):
    """MobileNet's: asymmetric padding as in TensorFlow, depthwise and pointwise convolutions, relu6."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, bias=False)
        self.conv_bn = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, 2, groups=8, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(8)
        self.pointwise = nn.Conv2d(8, 16, 1, bias=False)
        self.pointwise_bn = nn.BatchNorm2d(16)
        self.head = nn.Conv2d(16, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.conv_bn(self.conv(F.pad(x, (0, 1, 0, 1)))))
        x = F.relu6(self.depthwise_bn(self.depthwise(F.pad(x, (0, 1, 0, 1)))))
        x = F.relu6(self.pointwise_bn(self.pointwise(x)))
        return torch.flatten(self.head(torch.mean(x, (2, 3), keepdim=True)), 1)


class Concat(nn.Module):
    """Two branches, one after the other in the channels of a third convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 6, 3, padding=1)
        self.left_bn = nn.BatchNorm2d(6)
        self.right = nn.Conv2d(3, 10, 1)
        self.right_bn = nn.BatchNorm2d(10)
        self.join = nn.Conv2d(16, 12, 3, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([F.relu(self.left_bn(self.left(x))), F.relu(self.right_bn(self.right(x)))], 1)
        return self.head(self.pool(F.relu(self.join(both))).flatten(1))


class Pair(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2)
        self.side = nn.Linear(5, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, image: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        features = F.relu(self.conv(image)).mean((2, 3)) + F.relu(self.side(extra))
        return self.head(features), features


class Twice(nn.Module):
    """A layer that is called twice, on values of different range."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.again(F.relu(self.again(F.relu(self.first(x))))))
        return self.head(x.mean((2, 3)))


class Shuffled(nn.Module):
    """Grouped convolution, shapes taken apart at run time, chunks, a gate: what only moves and what is no integer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.gate = nn.Linear(8, 8)
        self.head = nn.Linear(4 * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = F.hardtanh(self.grouped(x), -1.0, 2.0)
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        left, right = x.chunk(2, 1)
        return self.head((left - 0.5 * right).view(x.size(0), -1))


class Tokens(nn.Module):
    """One block of a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, 2)
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.proj = nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)  # n 16 8
        q, k, v = self.qkv(self.norm(x))[:, None].chunk(3, -1)  # n 1 16 8
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v)[:, 0])
        x = x + self.mlp(x)
        return self.head(x.mean(1))


class SelfAttention(nn.Module):
    """Attention with four heads, a fused layer in front."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 4, 3
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).reshape(x.shape[0], -1, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*heads.unbind(0))  # n heads tokens 3
        return self.proj(y.transpose(1, 2).flatten(2))


class Attentive(nn.Module):
    """Two residual blocks of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 2, 2)
        self.first, self.second = SelfAttention(), SelfAttention()
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)  # n 16 12
        x = x + self.first(x)
        return self.head((x + self.second(x)).mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(3 * 8 * 8, 24),
        nn.ReLU(),
        nn.Linear(24, 16, bias=False),
        nn.ReLU(),
        nn.Linear(16, CLASSES),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "residual": Residual,
    "depthwise": Depthwise,
    "concat": Concat,
    "mlp": mlp,
    "pair": Pair,
    "twice": Twice,
    "shuffled": Shuffled,
    "tokens": Tokens,
    "attention": Attentive,
}


def network(name: str, seed: int = 0) -> nn.Module:
    """The network in eval mode, with batch norms that do something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NETWORKS[name]().eval()
        return lively(model)


@torch.no_grad()
def lively(model: nn.Module) -> nn.Module:
    """Draw the statistics and the gains of batch norms, as training would have left them."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
            if module.affine:
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    return model


def images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 3, 8, 8)).astype(np.float32)


def inputs_of(name: str, n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Samples for the network called ``name``."""
    if name != "pair":
        return {"x": images(n, seed)}
    extra = np.random.default_rng(seed + 1).standard_normal((n, 5)).astype(np.float32)
    return {"image": images(n, seed), "extra": extra}


def tensors(inputs: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(x) for name, x in inputs.items()}


class Rows:
    """A split of arrays."""

    def __init__(self, inputs: dict[str, np.ndarray], targets: np.ndarray | None) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def read(self, indices: Sequence[int]) -> Batch:
        rows = list(indices)
        inputs = {name: x[rows] for name, x in self.inputs.items()}
        return Batch(inputs, None if self.targets is None else self.targets[rows])


def first_output(outputs: Any) -> Any:
    return next(iter(outputs.values()))


def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    return F.cross_entropy(first_output(outputs), targets)


TOP1 = Metric(
    "top1",
    records=lambda outputs, targets: (first_output(outputs).argmax(1) == targets).astype(np.float64),
    decide=lambda outputs: first_output(outputs).argmax(1),
    aggregate=lambda records: float(np.mean(records)),
    binary=True,
)


def task_for(name: str = "plain", n: int = 64, labels: bool = True, trainable: bool = True) -> Task:
    """Noise with a patch whose place says the class: a few steps of training learn it."""

    def rows(count: int, seed: int) -> Rows:
        inputs = inputs_of(name, count, seed)
        targets = np.arange(count) % CLASSES
        picture = next(iter(inputs.values()))
        for i, target in enumerate(targets):
            top, left = 4 * (target // 2), 4 * (target % 2)
            picture[i, :, top : top + 4, left : left + 4] += 2.0
        return Rows(inputs, targets if labels else None)

    return Task(
        name="patches",
        metric=TOP1,
        train=rows(n, 10),
        search=rows(n, 11),
        holdout=rows(n, 12),
        loss=cross_entropy if labels else None,
        trainable=trainable,
        fingerprint=f"patches {name} {n}",
        preprocess=Preprocess(),
        calibration=n,
    )


def context(**changes: Any) -> Context:
    return Context(**{"traits": INTEGER, **changes})
