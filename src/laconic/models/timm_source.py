"""``timm:NAME[@WEIGHTS.safetensors]``: a model of PyTorch Image Models (Wightman 2019).

Nothing is downloaded: without a file the weights are random. Pre-processing is timm's own for the name; where it has
no equal among ours (cropping with a border), none is stated.
"""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import Any

from torch import nn

from laconic.core import Preprocess
from laconic.errors import MissingExtraError, ModelError
from laconic.models.loaded import LoadedModel, input_names, ready
from laconic.models.weights import build_with, unknown


def load(name: str, weights: str | None, source: str) -> LoadedModel:
    try:
        import timm
        from timm.data.config import resolve_model_data_config
        from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
    except ImportError as error:
        raise MissingExtraError("timm", "timm") from error

    if not timm.is_model(name):
        known = timm.list_models()
        raise unknown("model of timm", name, known, get_close_matches(name, known))

    def build(classes: int) -> nn.Module:
        try:
            return timm.create_model(name, pretrained=False, num_classes=classes)
        except RuntimeError as error:
            raise ModelError(f"timm cannot build the model ({error})", got=name) from error

    module, classes, note = build_with(build, _classes(timm, name), weights)
    config = resolve_model_data_config(module)  # type: ignore[no-untyped-call]
    subset = infer_imagenet_subset(module) if classes == 1000 else None
    return LoadedModel(
        module=ready(module),
        source=source,
        preprocess=_preprocess(config),
        labels=tuple(ImageNetInfo(subset).label_descriptions()) if subset else (),
        input_shape=tuple(config["input_size"]),
        input_names=input_names(module),
        note=note,
    )


def _preprocess(config: dict[str, Any]) -> Preprocess | None:
    """timm's evaluation transform: resize to 1/crop_pct of the input, then crop its centre."""
    _, height, width = config["input_size"]
    scaled = math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"])
    if config["crop_mode"] == "border" or (config["crop_mode"] == "center" and height != width):
        return None
    return Preprocess(
        resize=scaled if config["crop_mode"] == "squash" else scaled[0],
        interpolation=config["interpolation"],
        crop=(height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _classes(timm: Any, name: str) -> int:
    """What timm builds for the name: 0 for a network without classifier, 1000 where it states nothing."""
    stated: int | None = timm.get_pretrained_cfg_value(name, "num_classes")
    return 1000 if stated is None else stated
