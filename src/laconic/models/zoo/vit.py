"""A small vision transformer for 28x28 pictures, of plain layers: the transformer on which compression is measured.

Dosovitskiy et al. 2020, "An image is worth 16x16 words" (arXiv 2010.11929), without the class token: the mean over the
tokens goes to the head (as in Zhai et al. 2021, arXiv 2106.04560). 16 patches of 7x7 pixels, width 96, 5 blocks with 4
heads and a hidden layer of 3 x 96; pre-norm, GELU. 474,058 parameters.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from laconic.core import Preprocess
from laconic.models.zoo.entry import Entry

_SIDE, _PATCH, _WIDTH, _HIDDEN, _HEADS, _DEPTH = 28, 7, 96, 288, 4, 5
_TOKENS = (_SIDE // _PATCH) ** 2


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_dim = _HEADS, _WIDTH // _HEADS
        self.norm1 = nn.LayerNorm(_WIDTH)
        self.qkv = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.proj = nn.Linear(_WIDTH, _WIDTH)
        self.norm2 = nn.LayerNorm(_WIDTH)
        self.fc1 = nn.Linear(_WIDTH, _HIDDEN)
        self.fc2 = nn.Linear(_HIDDEN, _WIDTH)

    def forward(self, x: Float[Tensor, "n tokens width"]) -> Float[Tensor, "n tokens width"]:
        heads = self.qkv(self.norm1(x)).reshape(-1, _TOKENS, 3, self.heads, self.head_dim)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # n heads tokens head_dim
        attention = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(self.head_dim), -1)  # n heads tokens tokens
        x = x + self.proj((attention @ v).transpose(1, 2).reshape(-1, _TOKENS, self.heads * self.head_dim))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))  # type: ignore[no-any-return]


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(_PATCH * _PATCH, _WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(1, _TOKENS, _WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(_DEPTH)))
        self.norm = nn.LayerNorm(_WIDTH)
        self.head = nn.Linear(_WIDTH, 10)

    def forward(self, x: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n 10"]:
        rows = _SIDE // _PATCH
        x = x.reshape(-1, rows, _PATCH, rows, _PATCH).permute(0, 1, 3, 2, 4)  # n rows rows 7 7
        x = self.patches(x.reshape(-1, _TOKENS, _PATCH * _PATCH)) + self.positions  # n 16 96
        return self.head(self.norm(self.blocks(x)).mean(1))  # type: ignore[no-any-return]  # n 10


VIT_FASHION = Entry(
    build=ViT,
    preprocess=Preprocess(channels="L", resize=(28, 28), mean=(0.2860,), std=(0.3530,)),
    input_shape=(1, 28, 28),
    labels=("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
    paper="Dosovitskiy et al. 2020 (arXiv 2010.11929), with the mean of the tokens in front of the head",
)
