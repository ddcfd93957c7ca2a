"""Channels of networks that came as ONNX files: removed, written back, and computed by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from laconic import surgery
from laconic.core import Recipe
from laconic.models import load
from laconic.models.onnx_import.relative import _relative
from laconic.models.onnx_import.session import run_graph
from laconic.steps.prune.channels import PruneChannels
from tests.models.test_onnx_file import NETS
from tests.networks import Rows, context, lively, task_for


def prune(model: nn.Module) -> nn.Module:
    task = task_for("plain", n=2)
    x = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    object.__setattr__(task, "train", Rows({"x": x}, None))
    return Recipe((PruneChannels(0.5),)).apply(model, task, context())[0]


def widths(model: nn.Module) -> list[int]:
    return [len(layer.weight) for layer in surgery.weighted_layers(model).values()]


@pytest.mark.parametrize(("name", "dynamo"), [("resnet", True), ("regnet_y", False), ("densenet", False)])
def test_a_file_loses_the_channels_that_the_network_would(name: str, dynamo: bool, export: Callable[..., str]) -> None:
    torch.manual_seed(0)
    net = lively(NETS[name]().eval())
    module = load(export(net, (3, 64, 64), dynamo=dynamo)).module
    changed = prune(module)
    assert sorted(widths(changed)) == sorted(widths(prune(net)))
    assert sum(w for w in widths(changed) if w != 1000) < 0.6 * sum(w for w in widths(module) if w != 1000)
    x = torch.randn(2, 3, 64, 64)
    model = changed.to_onnx()  # type: ignore[operator]
    onnx.checker.check_model(model, full_check=True)
    with torch.no_grad():
        wanted, before = changed(x), module(x)
    (found,) = run_graph(model, [x])
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert float((wanted - before).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("given", "wanted", "found"),
    [
        ([None, 512, 1, 1], [-1, 512], [0, 0]),
        ([None, 512, 7, 7], [-1, 25088], [0, -1]),
        ([None, 8, 8, 96], [0, 2, 4, 2, 4, 96], [0, 2, 4, 2, 4, -1]),
        ([None, 48, 12, 12], [0, 2, 24, 12, 12], [0, 2, -1, 12, 12]),
        ([None, 2, 24, 12, 12], [0, 48, 12, 12], [0, -1, 12, 12]),
        ([None, 64, 9], [0, 64, 3, 3], [0, 0, -1, 3]),
        ([4, 6], [24], [24]),
        ([None, 6], [-1, 3, 2], [0, -1, 2]),
    ],
)
def test_sizes_are_said_relative_to_what_is_reshaped(
    given: list[int | None], wanted: list[int], found: list[int]
) -> None:
    assert _relative(given, wanted) == found
