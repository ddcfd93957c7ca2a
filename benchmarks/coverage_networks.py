"""The networks of the coverage benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from laconic import models
from laconic.core import Arrays

SIDES = (96, 128, 160)

@dataclass(frozen=True)
class Network:
    name: str
    family: str

    def open(self) -> tuple[nn.Module, Arrays]:
        loaded = models.load(self.name)
        from tests.networks import lively
        model = lively(loaded.module)
        if loaded.input_shape is None:
            return model, INPUTS[self.name.rpartition(":")[2]]()
        channels, *native = loaded.input_shape
        for side in [s for s in SIDES if s < native[0]] + [native[0]]:
            x = np.random.default_rng(0).standard_normal((2, channels, side, side)).astype(np.float32)
            try:
                with torch.no_grad():
                    y = model(torch.as_tensor(x))
                return model, {loaded.input_names[0]: x}
            except Exception:
                if side == native[0]:
                    raise
        raise AssertionError


INPUTS: dict[str, Callable[[], Arrays]] = {}


def text():
    return {"input_ids": np.random.default_rng(0).integers(0, 99, (2, 12))}


def pictures(side=64):
    return lambda: {"pixel_values": np.random.default_rng(0).standard_normal((2, 3, side, side)).astype(np.float32)}
