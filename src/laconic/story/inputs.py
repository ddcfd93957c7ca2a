"""What a model takes: said in the package, and demanded of samples before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from laconic import surgery
from laconic.core import Arrays, JsonObject
from laconic.errors import DataError, LaconicError


def stated(example: Mapping[str, torch.Tensor]) -> JsonObject:
    """Shape without the batch, and type, of each input by its name."""
    return {
        name: {"shape": list(x.shape[1:]), "dtype": str(x.dtype).removeprefix("torch.")} for name, x in example.items()
    }


def made_up(inputs: JsonObject, n: int) -> Arrays:
    """``n`` samples of the inputs that :func:`stated` described: noise, and zeros where whole numbers are taken."""
    random = np.random.default_rng(0)
    found = {}
    for name, known in inputs.items():
        shape, dtype = (n, *known["shape"]), np.dtype(known["dtype"])
        found[name] = random.normal(size=shape).astype(dtype) if dtype.kind == "f" else np.zeros(shape, dtype)
    return found


def require_fit(model: nn.Module, example: Mapping[str, torch.Tensor]) -> None:
    """Refuse samples that the model cannot take."""
    try:
        with torch.no_grad():
            surgery.call(model, example)
    except LaconicError:
        raise
    except Exception as error:  # whatever the user's own model raises
        found = ", ".join(f"{name} {tuple(x['shape'])} {x['dtype']}" for name, x in stated(example).items())
        raise DataError(
            f"the model does not take these samples: {type(error).__name__}: {error}",
            got=found, fix="check size, channels and type of the input",
        ) from error  # fmt: skip


def require_layers(model: nn.Module, keep: Sequence[str]) -> None:
    """Refuse a --keep that names no layer: it would protect nothing."""
    surgery.require_matches("--keep", keep, list(surgery.weighted_layers(model)))
