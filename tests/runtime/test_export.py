"""What torch's exporter cannot write by itself."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic.core import Target
from laconic.runtime import onnxruntime

TARGET = Target("onnxruntime")
TOKENS, WIDTH = 4, 6


class Attention(nn.Module):
    """Attention over (batch, *leading, tokens, width), the leading dimensions being windows and heads."""

    def __init__(self, leading: tuple[int, ...], causal: bool) -> None:
        super().__init__()
        self.leading = leading
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril() if causal else None

    def forward(self, x: Tensor) -> Tensor:
        parts = (part.unflatten(1, (*self.leading, TOKENS)) for part in self.qkv(x).chunk(3, -1))
        return F.scaled_dot_product_attention(*parts, self.mask).flatten(1, -2)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("leading", [(), (2,), (3, 2), (1, 3, 2)])
def test_attention_over_any_number_of_dimensions(leading: tuple[int, ...], causal: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Attention(leading, causal).eval()
    x = np.random.default_rng(0).standard_normal((3, math.prod(leading) * TOKENS, WIDTH), np.float32)
    onnxruntime.deploy(model, {"x": x}, tmp_path / "model.onnx", TARGET)
    (found,) = onnxruntime.open_file(tmp_path / "model.onnx", TARGET)({"x": x}).values()
    with torch.no_grad():
        np.testing.assert_allclose(found, model(torch.as_tensor(x)), atol=1e-5)
