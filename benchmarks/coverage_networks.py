"""The networks of the coverage benchmark: what each is, how it is opened, what it is given.

Every classifier of torchvision; of timm 1.0 the smallest member (by parameters, with few exceptions) of every module
whose smallest has fewer than 60 million of them and takes pictures of at most 320 pixels; transformers by
:mod:`benchmarks.coverage_transformers`. Weights are random; small networks come first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from laconic import models
from laconic.core import Array, Arrays

SIDES = (64, 96, 128)
"""Sides of pictures that are tried before a network's own."""
_FACTORIES = Path(__file__).resolve().parent / "coverage_transformers.py"
_TEXTS = ("llama", "llama_grouped", "bert", "gpt2")
_TRANSFORMERS = (
    *("resnet", "mobilenet_v1", "mobilenet_v2", "regnet", "convnext", "vit", "swin", "segformer", "detr", "yolos"),
    *_TEXTS,
)
_TIMM = """
test_convnext test_efficientnet test_vit test_nfnet test_mambaout test_byobnet test_resnet starnet_s050 test_coatnet
test_vit_relpos dla46x_c mobilevit_xxs edgenext_xx_small mobilenetv3_small_050 ese_vovnet19b_slim_dw repghostnet_050
efficientvit_m0 ghostnet_050 regnetx_002 cspnext_tiny iformer_t xcit_nano_12_p8_224 cs3darknet_focus_s efficientvit_b0
swiftformer_xs efficientformerv2_s0 pvt_v2_b0 fasternet_t0 fastvit_t8 lcnetv2_small inception_next_atto rexnet_100
pit_ti_224 hardcorenas_b repvit_m1 vit_tiny_patch16_dinov3_qkvb coat_tiny convit_tiny deit_tiny_patch16_224
gmlp_ti16_224 hgnetv2_b0 shvit_s1 vit_tiny_r_s16_p8_224 cpubone_nano efficientvim_m1 crossvit_tiny_240 densenet121
halonet_h1 dpn48b visformer_tiny resnest14d resnetv2_18 legacy_seresnet18 poolformerv2_s12 cait_xxs24_224 skresnet18
gcvit_xxtiny tiny_vit_5m_224 efficientformer_l1 hrnet_w18_small lowformer_b0 nest_tiny convmixer_768_32
vitamin_small_224 legacy_xception tnt_s_legacy_patch16_224 inception_v3 rdnet_tiny twins_svt_small mvitv2_tiny
res2next50 volo_d1_224 xception41p sequencer2d_s hiera_tiny_224 swin_tiny_patch4_window7_224 swinv2_cr_tiny_224
swinv2_tiny_window8_256 davit_tiny focalnet_tiny_srf selecsls42 tresnet_m nextvit_small levit_384_s8 inception_v4
inception_resnet_v2
"""


@dataclass(frozen=True)
class Network:
    """``name`` is what :func:`laconic.models.load` is told, but for transformers."""

    name: str

    @property
    def source(self) -> str:
        return self.name.partition(":")[0]

    def open(self) -> tuple[nn.Module, Arrays]:
        """The network, its constant parameters drawn, and two samples of the smallest size that it takes, of its own
        size where it pools to a grid (TorchScript's exporter wants a size that the grid divides)."""
        kind = self.name.partition(":")[2]
        if self.source == "transformers":
            module = lively(models.load(f"{_FACTORIES}:{kind}").module)
            rng = np.random.default_rng(0)
            return module, {"input_ids": rng.integers(0, 99, (2, 12))} if kind in _TEXTS else {
                "pixel_values": noise(64)
            }
        loaded = models.load(self.name)
        assert loaded.input_shape is not None
        own = loaded.input_shape[-1]
        module = lively(loaded.module)
        pools = [part.output_size for part in module.modules() if isinstance(part, nn.AdaptiveAvgPool2d)]
        sides = SIDES if all(size in (1, (1, 1)) for size in pools) else ()
        for side in [side for side in sides if side < own]:
            if _runs(module, noise(side)):
                return module, {loaded.input_names[0]: noise(side)}
        return module, {loaded.input_names[0]: noise(own)}


def all_networks() -> list[Network]:
    import torchvision

    def size(name: str) -> int:
        return int(torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"])

    classifiers = sorted(torchvision.models.list_models(module=torchvision.models), key=size)
    return [
        *(Network(f"transformers:{name}") for name in _TRANSFORMERS),
        *(Network(f"timm:{name}") for name in _TIMM.split()),
        *(Network(f"torchvision:{name}") for name in classifiers),
    ]


def noise(side: int) -> Array:
    """Two pictures."""
    return np.random.default_rng(0).standard_normal((2, 3, side, side)).astype(np.float32)


@torch.no_grad()
def _runs(module: nn.Module, x: Array) -> bool:
    try:
        return bool(torch.isfinite(module(torch.as_tensor(x))).all())
    except Exception:  # a network that does not take this size fails as it likes
        return False


@torch.no_grad()
def lively(module: nn.Module) -> nn.Module:
    """Draw what is constant in a network without training: gains (of 1e-6, sometimes, so that whole branches would not
    be seen), biases, positions, and the statistics of batch norms."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in module.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                parameter.normal_(0, 0.1) if not parameter.flatten()[0] else parameter.uniform_(0.5, 1.5)
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
                assert part.running_var is not None
                part.running_mean.uniform_(-0.5, 0.5)
                part.running_var.uniform_(0.5, 1.5)
    return module
