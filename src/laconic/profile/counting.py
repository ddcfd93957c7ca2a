"""Run a model once and see every torch operator that it uses, with the module that used it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from laconic.profile.operators import MACS, ONE_OUTPUT, UNWRITTEN, is_free, is_view


class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, adds up what operators do, by the path of the innermost module that is running.

    ``macs`` and ``written_bytes`` are by path; ``unknown`` counts the calls of operators that are in no table.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running: list[str] = [""]
        self.macs: Counter[str] = Counter()
        self.written_bytes: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name, path = func._schema.name, self.running[-1]
        if name in MACS:
            self.macs[path] += MACS[name](args, result)
        elif not is_free(func):
            self.unknown[name] += 1
        if not is_view(func) and name not in UNWRITTEN:
            self.written_bytes[path] += _bytes(result, only_first=name in ONE_OUTPUT)
        return result


def _bytes(result: Any, only_first: bool) -> int:
    if isinstance(result, Tensor):
        return result.numel() * result.element_size()
    if isinstance(result, (tuple, list)):
        return sum(_bytes(part, only_first) for part in (result[:1] if only_first else result))
    return 0


@contextmanager
def counted(model: nn.Module) -> Iterator[Count]:
    """Count what ``model`` does, in eval mode and without torch's fused paths, which hide operators."""
    count = Count()
    modes = [(module, module.training) for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        for path, module in model.named_modules():
            enter, leave = _hooks(count, layer_of(path))
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        torch.backends.mha.set_fastpath_enabled(False)
        for module, training in modes:
            stack.callback(setattr, module, "training", training)
        model.eval()
        stack.enter_context(torch.no_grad())
        stack.enter_context(count)
        yield count


def layer_of(path: str) -> str:
    """The layer that a module belongs to: itself, unless it is part of a parametrization."""
    return path.partition("parametrizations.")[0].rstrip(".") if "parametrizations." in path else path


def _hooks(count: Count, path: str) -> tuple[Callable[..., None], Callable[..., None]]:
    def enter(module: nn.Module, inputs: Any) -> None:
        count.running.append(path)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        count.running.pop()

    return enter, leave
