"""``torchvision:NAME[@WEIGHTS.safetensors]``: a classifier of torchvision.

Nothing is downloaded: without a file the weights are random. Pre-processing and labels are those that torchvision
states beside its default weights.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from torch import nn

from laconic.core import Preprocess
from laconic.errors import MissingExtraError
from laconic.models.loaded import LoadedModel, input_names, ready
from laconic.models.weights import build_with, unknown

_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": False, "transform_input": True},
    "inception_v3": {"aux_logits": False, "init_weights": False, "transform_input": True},
    "vit_h_14": {"image_size": 518},
}
"""As torchvision itself builds these for its own weights."""
_CLASSES = 1000


def load(name: str, weights: str | None, source: str) -> LoadedModel:
    try:
        from torchvision import models
    except ImportError as error:
        raise MissingExtraError("torchvision", "torchvision") from error

    known = models.list_models(module=models)
    if name not in known:
        raise unknown("classifier of torchvision", name, known, get_close_matches(name, known))

    def build(classes: int) -> nn.Module:
        return models.get_model(name, weights=None, num_classes=classes, **_OPTIONS.get(name, {}))  # type: ignore[no-any-return]

    module, classes, note = build_with(build, _CLASSES, weights)
    default = models.get_model_weights(name).DEFAULT
    preprocess = _preprocess(default.transforms())
    assert preprocess.crop is not None
    return LoadedModel(
        module=ready(module),
        source=source,
        preprocess=preprocess,
        labels=tuple(default.meta["categories"]) if classes == _CLASSES else (),
        input_shape=(3, *preprocess.crop),
        input_names=input_names(module),
        note=note,
    )


def _preprocess(transforms: Any) -> Preprocess:
    """torchvision's ``ImageClassification`` in our words."""
    (resize,), (crop,) = transforms.resize_size, transforms.crop_size
    return Preprocess(
        resize=resize,
        interpolation=transforms.interpolation.value,
        crop=(crop, crop),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )
