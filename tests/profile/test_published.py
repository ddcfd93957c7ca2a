"""Counts against those that torchvision publishes with its weights: one model per family, as shapes without numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from laconic.profile import profile

models = pytest.importorskip("torchvision.models")

FAMILIES = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_large", "regnet_x_400mf", "regnet_y_400mf", "resnet18"),
    *("resnext50_32x4d", "shufflenet_v2_x1_0", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32"),
    "wide_resnet50_2",
)


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _regnets_are_planned_in_numbers(monkeypatch)
    documented = next(iter(models.get_model_weights(name)))
    options: dict[str, Any] = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    options = {"init_weights": False} if name == "inception_v3" else options
    size = documented.transforms().crop_size[0]
    with torch.device("meta"):
        model, x = models.get_model(name, weights=None, **options), torch.empty(1, 3, size, size)
    found = profile(model, x)
    assert found.params == documented.meta["num_params"]
    assert found.macs / 1e9 == pytest.approx(documented.meta["_ops"], abs=0.0006)  # they are rounded to 0.001
    assert found.unsupported == {}
    assert found.flops > 2 * found.macs


def _regnets_are_planned_in_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """RegNet computes its widths with tensors, which must not be shapes alone."""
    from torchvision.models.regnet import BlockParams

    plan = BlockParams.from_init_params

    def planned(cls: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.device("cpu"):
            return plan(*args, **kwargs)

    monkeypatch.setattr(BlockParams, "from_init_params", classmethod(planned))
