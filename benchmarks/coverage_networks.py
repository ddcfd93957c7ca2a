"""The networks of the coverage benchmark: what each is, how it is opened, what it is given.

Every classifier of torchvision; of timm the smallest member (by parameters) of every module whose smallest has fewer
than 60 million of them and takes pictures of at most 320 pixels; transformers by :mod:`benchmarks.coverage_transformers`.
Weights are random.
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
halonet_h1 test_byobnet cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 test_convnext cpubone_nano
crossvit_tiny_240 cs3darknet_focus_s cspnext_tiny davit_tiny deit_tiny_patch16_224 densenet121 dla46x_c dpn48b
edgenext_xx_small efficientformer_l1 efficientformerv2_s0 test_efficientnet efficientvim_m1 efficientvit_b0
efficientvit_m0 vit_tiny_patch16_dinov3_qkvb fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_050
hardcorenas_b hgnetv2_b0 hiera_tiny_224 hrnet_w18_small iformer_t inception_next_atto inception_resnet_v2 inception_v3
inception_v4 lcnetv2_small levit_384_s8 lowformer_b0 test_mambaout test_coatnet poolformerv2_s12 gmlp_ti16_224
mobilenetv3_small_050 mobilevit_xxs mvitv2_tiny nest_tiny nextvit_small test_nfnet pit_ti_224 pvt_v2_b0 rdnet_tiny
regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d test_resnet resnetv2_18 rexnet_100 selecsls42
legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224
swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small
visformer_tiny test_vit vit_tiny_r_s16_p8_224 test_vit_relpos vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw
legacy_xception xception41p xcit_nano_12_p8_224
"""


@dataclass(frozen=True)
class Network:
    """``name`` is what :func:`laconic.models.load` is told, but for transformers."""

    name: str

    @property
    def source(self) -> str:
        return self.name.partition(":")[0]

    def open(self) -> tuple[nn.Module, Arrays]:
        """The network, its constant parameters drawn, and two samples of the smallest size that it takes."""
        kind = self.name.partition(":")[2]
        if self.source == "transformers":
            module = lively(models.load(f"{_FACTORIES}:{kind}").module)
            rng = np.random.default_rng(0)
            return module, {"input_ids": rng.integers(0, 99, (2, 12))} if kind in _TEXTS else {"pixel_values": noise(64)}
        loaded = models.load(self.name)
        assert loaded.input_shape is not None
        own = loaded.input_shape[-1]
        module = lively(loaded.module)
        for side in [side for side in SIDES if side < own]:
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
