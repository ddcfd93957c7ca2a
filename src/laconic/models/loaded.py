"""What every source gives: a module with what is known of it."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from laconic.core import Preprocess
from laconic.errors import ModelError
from laconic.models.unpack import unpack


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be shrunk: in eval mode, on the CPU, in float32.

    ``source`` is what the user wrote; ``note`` is what they should know of it (random weights, a batch dimension made
    free) or empty. ``input_shape`` is without the batch; None where the model does not say. ``input_names`` has one
    name per input, in order.
    """

    module: nn.Module
    source: str
    fingerprint: str = field(init=False)
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] = ()
    input_shape: tuple[int, ...] | None = None
    input_names: tuple[str, ...] = ("x",)
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fingerprint", fingerprint(self.module))


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """The module that ``build`` makes, its random weights the same at every call; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def ready(module: nn.Module) -> nn.Module:
    """The module in eval mode, on the CPU, in float32, its weights in layers (:mod:`.unpack`), after a check that they
    are finite."""
    module = unpack(module.cpu().float().eval())
    for name, parameter in module.named_parameters():
        require_finite(name, parameter)
    for name, buffer in module.named_buffers():
        require_finite(name, buffer, masks=True)
    return module


def require_finite(name: str, tensor: Tensor, masks: bool = False) -> None:
    """Refuse NaN and infinity; ``masks`` lets -inf pass, which is how attention masks are written."""
    if tensor.is_floating_point():
        allowed = torch.isfinite(tensor) | (tensor == -torch.inf) if masks else torch.isfinite(tensor)
        wrong = int(tensor.numel() - allowed.sum())
        if wrong:
            raise ModelError(
                f"the weights are not finite: tensor {name}", got=f"{wrong} of {tensor.numel()} values NaN or infinite"
            )


def fingerprint(module: nn.Module) -> str:
    """The SHA-256 of the module's structure as it prints and of the names, types, shapes and bytes of its state."""
    sha = hashlib.sha256()
    sha.update(re.sub(r"0x[0-9a-f]+", "", f"{type(module).__qualname__} {module!r}").encode())
    for name, tensor in module.state_dict().items():
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def input_names(module: nn.Module) -> tuple[str, ...]:
    """The parameters of ``forward`` that must be given."""
    parameters = inspect.signature(module.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in parameters if p.kind in positional and p.default is inspect.Parameter.empty)
