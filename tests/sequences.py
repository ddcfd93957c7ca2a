"""Small recurrent networks and transformers on sequences, as :mod:`tests.networks` has convolutional ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic.core import Task
from laconic.models.loaded import ready
from tests.networks import CLASSES, TOP1, Rows, cross_entropy

STEPS_OF_TIME, FEATURES = 4, 6


class Recurrent(nn.Module):
    """A recurrent module between two linear layers."""

    def __init__(self, kind: type[nn.RNNBase], hidden: int = 20, **settings: object) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 12)
        self.rnn = kind(12, hidden, batch_first=True, **settings)  # type: ignore[arg-type]
        self.head = nn.Linear(hidden * (2 if self.rnn.bidirectional else 1), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(F.relu(self.first(x)))[0].mean(1))


class Encoder(nn.Module):
    """torch's own encoder layer, then its attention by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(self.first(x))
        return self.head((x + self.attention(x, x, x)[0]).mean(1))


SEQUENCES: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Recurrent(nn.LSTM),
    "both ways": lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True),
    "gru": lambda: Recurrent(nn.GRU),
    "encoder": Encoder,
}


def sequence_network(name: str, seed: int = 0) -> nn.Module:
    """The network in eval mode, as loading a model leaves it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ready(SEQUENCES[name]())


def sequences(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((n, STEPS_OF_TIME, FEATURES)).astype(np.float32)}


def sequence_task(n: int = 48) -> Task:
    """Noise in which one feature, the class's, is larger."""

    def rows(seed: int) -> Rows:
        inputs, targets = sequences(n, seed), np.arange(n) % CLASSES
        inputs["x"][np.arange(n), :, targets] += 1.5
        return Rows(inputs, targets)

    splits = (rows(1), rows(2), rows(3))
    return Task("sequences", TOP1, *splits, cross_entropy, trainable=True, fingerprint=f"sequences {n}", calibration=n)
