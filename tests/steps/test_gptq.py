"""GPTQ against an algorithm of its own (least squares for what is left), a brute force, and rounding to nearest."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

from laconic.core import Recipe, Target
from laconic.errors import TrialError
from laconic.runtime import onnxruntime
from laconic.steps.quantize import rounding
from laconic.steps.quantize.gptq import GPTQ, gptq
from laconic.steps.quantize.post_training import Quantize
from tests.networks import context, inputs_of, network, task_for

LIMITS = (-3, 3)


def problem(groups: int, channels: int, inputs: int, rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, scales, and inputs that depend on each other as those of real layers do."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups, channels, inputs, generator=g, dtype=torch.float64)
    mix = torch.randn(groups, inputs, inputs, generator=g, dtype=torch.float64) * torch.logspace(0, -1, inputs)
    x = torch.randn(groups, rows, inputs, generator=g, dtype=torch.float64) @ mix + 0.5
    scale = (weight.abs().amax(2, keepdim=True) / LIMITS[1]).expand_as(weight)
    return weight, scale, x


def rounded(weight: Tensor, scale: Tensor) -> Tensor:
    return torch.round(weight / scale).clamp(*LIMITS)


def loss(x: Tensor, weight: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """|W X - Q X|^2 of every output channel: (groups, channels)."""
    return ((codes * scale - weight) @ x.transpose(1, 2)).square().sum(2)


def by_least_squares(weight: Tensor, scale: Tensor, hessian: Tensor, order: bool) -> Tensor:
    """Column by column: round one, then solve for those that are left so that the outputs change least."""
    k = len(hessian)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(k, dtype=hessian.dtype)
    root = torch.linalg.cholesky(damped).T  # |e root^T|^2 = e H e^T
    columns = (hessian.diagonal().argsort(descending=True) if order else torch.arange(k)).tolist()
    codes = torch.zeros_like(weight)
    for c in range(len(weight)):
        w = weight[c].clone()
        for i, j in enumerate(columns):
            codes[c, j] = rounded(w[j], scale[c, j])
            left = columns[i + 1 :]
            if left:
                fixed = columns[: i + 1]
                error = root[:, fixed] @ (codes[c, fixed] * scale[c, fixed] - weight[c, fixed])
                w[left] = weight[c, left] - torch.linalg.lstsq(root[:, left], error[:, None]).solution[:, 0]
    return codes


@pytest.mark.parametrize("order", [False, True])
def test_it_is_least_squares_for_what_is_left(order: bool) -> None:
    weight, scale, x = problem(2, 3, 9, 40)
    h = x.transpose(1, 2) @ x
    codes, damping = gptq(weight, scale, torch.zeros_like(weight), LIMITS, h, order)
    for g in range(2):
        assert torch.equal(codes[g], by_least_squares(weight[g], scale[g], h[g], order))
    assert damping == 0.01


def test_it_is_between_the_best_codes_and_the_nearest() -> None:
    totals = {"best": 0.0, "gptq": 0.0, "nearest": 0.0}
    for seed in range(20):
        weight, scale, x = problem(1, 1, 4, 30, seed)
        codes, _ = gptq(weight, scale, torch.zeros_like(weight), LIMITS, x.transpose(1, 2) @ x)
        every = torch.tensor(list(itertools.product(range(-3, 4), repeat=4)), dtype=torch.float64)
        best = loss(x, weight, every[None], scale.expand(1, len(every), 4)).min()
        found, nearest = loss(x, weight, codes, scale), loss(x, weight, rounded(weight, scale), scale)
        assert float(found) >= float(best) - 1e-9
        for name, value in (("best", best), ("gptq", found), ("nearest", nearest)):
            totals[name] += float(value)
    assert totals["best"] < totals["gptq"] < 0.75 * totals["nearest"]


def test_blocks_of_columns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, scale, x = problem(1, 4, 50, 300)
    zero, h = torch.zeros_like(weight), x.transpose(1, 2) @ x
    whole, _ = gptq(weight, scale, zero, LIMITS, h)
    monkeypatch.setattr("laconic.steps.quantize.gptq._BLOCK", 7)
    parts, _ = gptq(weight, scale, zero, LIMITS, h)
    assert torch.equal(whole, parts)
    assert float(loss(x, weight, whole, scale).sum()) < 0.5 * float(
        loss(x, weight, rounded(weight, scale), scale).sum()
    )


def test_inputs_that_are_always_zero_get_the_code_zero() -> None:
    weight, scale, x = problem(1, 3, 6, 2)  # two rows: X X^T is singular, too
    x[:, :, 4] = 0
    codes, _ = gptq(weight, scale, torch.zeros_like(weight), LIMITS, x.transpose(1, 2) @ x)
    assert not codes[0, :, 4].any()
    assert codes[0, :, :4].any()
    assert float(codes.abs().max()) <= 3


def test_what_cannot_be_factorised_is_said() -> None:
    weight, scale, x = problem(1, 3, 6, 40)
    h = x.transpose(1, 2) @ x
    zero = torch.zeros_like(weight)
    _, damping = gptq(weight, scale, zero, LIMITS, h - 0.05 * h.diagonal(dim1=1, dim2=2).mean() * torch.eye(6))
    assert damping > 0.01, "more damping, and the facts name the layer"
    with pytest.raises(TrialError, match="factorise"):
        gptq(weight, scale, zero, LIMITS, torch.full_like(h, torch.nan))


def test_the_file_holds_the_codes(tmp_path: Path) -> None:
    model, _ = Recipe((Quantize(bits=4), GPTQ())).apply(network("depthwise"), task_for("depthwise"), context())
    path = tmp_path / "model.onnx"
    onnxruntime.deploy(model, inputs_of("depthwise", 2), path, Target("onnxruntime"))
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    for name, layer in rounding.rounded_layers(model, "It").items():
        codes = rounding.quantizer_of(layer).codes(rounding.float_weight(layer)).numpy()
        kept = [a.astype(np.float32) for a in stored.values() if a.size == codes.size and a.dtype != np.float32]
        assert any(np.array_equal(a.ravel(), codes.ravel()) for a in kept), name
    inputs = inputs_of("depthwise", 8, seed=3)
    session = onnxruntime.open_file(path, Target("onnxruntime"))
    with torch.no_grad():
        wanted = model(torch.as_tensor(inputs["x"])).numpy()
    (found,) = session(inputs).values()
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()
