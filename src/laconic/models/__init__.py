"""Where a model comes from: one source per file, and the one table that names them.

``torchvision:NAME[@WEIGHTS.safetensors]``, ``timm:NAME[@...]``, ``zoo:NAME[@...]``, ``FILE.py:FACTORY``, ``FILE.onnx``.
Nothing is downloaded and no pickle is opened.
"""

from __future__ import annotations

from collections.abc import Callable

from laconic.errors import ModelError
from laconic.models import onnx_file, python_file, timm_source, torchvision_source, zoo_source
from laconic.models.loaded import LoadedModel
from laconic.models.weights import refuse_pickle

__all__ = ["LoadedModel", "load"]

NAMED: dict[str, Callable[[str, str | None, str], LoadedModel]] = {
    "torchvision": torchvision_source.load,
    "timm": timm_source.load,
    "zoo": zoo_source.load,
}
"""``PREFIX:NAME[@WEIGHTS]`` -> ``load(name, weights, source)``."""


def load(spec: str) -> LoadedModel:
    """The model that ``spec`` names, with all that is known of it."""
    prefix, _, rest = spec.partition(":")
    if prefix in NAMED:
        name, _, weights = rest.partition("@")
        return NAMED[prefix](name, weights or None, spec)
    refuse_pickle(spec)
    if spec.lower().endswith(".onnx"):
        return onnx_file.load(spec)
    if ".py:" in spec:
        return python_file.load(spec)
    raise ModelError(
        "a model that cannot be read",
        got=repr(spec),
        wanted=f"{', '.join(f'{known}:NAME[@WEIGHTS.safetensors]' for known in NAMED)}, FILE.py:FACTORY or FILE.onnx",
    )
