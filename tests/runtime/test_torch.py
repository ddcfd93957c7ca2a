"""torch's own file on another device: nothing of it stays behind. The device without storage stands for a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from laconic.core import Target
from laconic.runtime import torch as runtime


class Makes(nn.Module):
    """Makes a tensor while it runs, and keeps one that is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.kept = torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.kept + torch.arange(4)


def test_the_whole_program_moves(tmp_path: Path) -> None:
    example = {"x": np.ones((3, 3), np.float32)}
    runtime.deploy(Makes().eval(), example, tmp_path / "f.pt2", Target("torch", "cuda"))
    module, inputs, outputs = runtime._opened(tmp_path / "f.pt2", "meta")
    y = module(torch.ones(5, 3, device="meta"))
    assert (y.device.type, tuple(y.shape), inputs, outputs) == ("meta", (5, 4), ["x"], ["output"])


def test_a_call_leaves_torch_as_it_was(tmp_path: Path) -> None:
    before = torch.backends.cudnn.enabled, torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    example = {"x": np.ones((3, 3), np.float32)}
    runtime.deploy(Makes().eval(), example, tmp_path / "f.pt2", Target("torch"))
    found = runtime.open_file(tmp_path / "f.pt2", Target("torch"))(example)["output"]
    assert found.shape == (3, 4)
    after = torch.backends.cudnn.enabled, torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    assert after == before
