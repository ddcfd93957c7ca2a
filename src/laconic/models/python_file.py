"""``FILE.py:FACTORY``: a module of the user's own, from a function in a file that they name."""

from __future__ import annotations

from torch import nn

from laconic.errors import ModelError
from laconic.factory import load_factory
from laconic.models.loaded import LoadedModel, input_names, ready


def load(source: str) -> LoadedModel:
    module = load_factory(source, ModelError)
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"the factory {source} gave no model",
            got=type(module).__name__,
            wanted="a torch.nn.Module with its weights loaded",
        )
    return LoadedModel(module=ready(module), source=source, input_names=input_names(module))
