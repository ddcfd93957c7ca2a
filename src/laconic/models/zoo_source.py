"""``zoo:NAME[@WEIGHTS.safetensors]``: a network of our own zoo."""

from __future__ import annotations

from difflib import get_close_matches

from laconic.models.loaded import LoadedModel, input_names, ready
from laconic.models.weights import build_with, unknown
from laconic.models.zoo import ZOO


def load(name: str, weights: str | None, source: str) -> LoadedModel:
    entry = ZOO.get(name)
    if entry is None:
        raise unknown("network of the zoo", name, ZOO, get_close_matches(name, ZOO))
    module, _, note = build_with(lambda classes: entry.build(), len(entry.labels), weights, entry.adapt)
    return LoadedModel(
        module=ready(module),
        source=source,
        preprocess=entry.preprocess,
        labels=entry.labels,
        input_shape=entry.input_shape,
        input_names=input_names(module),
        note=note,
    )
