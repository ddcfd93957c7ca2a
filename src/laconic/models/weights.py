"""Weights from a safetensors file into a module, and one clear line when they do not fit. Pickles are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from laconic.errors import ModelError
from laconic.models.loaded import seeded

PICKLES = (".pth", ".pt", ".ckpt", ".bin", ".pkl", ".pickle", ".th")
_COUNTER = "num_batches_tracked"
"""A counter of batch norm that inference never reads: files may lack it."""


def refuse_pickle(path: str) -> None:
    """Raise if the file's name says that it is a pickle: unpickling a stranger's file runs its code."""
    if path.lower().endswith(PICKLES):
        stem = path.rpartition(".")[0]
        raise ModelError(
            f"{path} is a pickle, which laconic does not open",
            wanted="weights as .safetensors",
            fix=f'convert it with: python -c "import torch, safetensors.torch as s; '
            f"s.save_file(torch.load('{path}', weights_only=True), '{stem}.safetensors')\"",
        )


def read_weights(path: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    refuse_pickle(path)
    if not Path(path).is_file():
        raise ModelError("no such weights file", got=path, wanted="a .safetensors file")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ModelError("the weights file cannot be read", got=path, wanted=f"safetensors ({error})") from error


def fit_weights(module: nn.Module, weights: Mapping[str, Tensor], path: str) -> None:
    """Load ``weights`` into ``module``; every name and shape must agree."""
    state = module.state_dict()
    missing = [name for name in state if name not in weights and not name.endswith(_COUNTER)]
    unexpected = [name for name in weights if name not in state]
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(state[name].shape)}"
        for name in state
        if name in weights and weights[name].shape != state[name].shape
    ]
    found = [_some(*pair) for pair in (("missing", missing), ("unexpected", unexpected), ("shapes differ", shapes))]
    if any(found):
        raise ModelError(f"the weights do not fit the model: got {'; '.join(filter(None, found))}", fix=f"see {path}")
    module.load_state_dict(dict(weights), strict=False)


def _some(word: str, names: Sequence[str]) -> str:
    return f"{len(names)} {word} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""


def build_with(
    build: Callable[[int], nn.Module],
    classes: int,
    path: str | None,
    adapt: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict,
) -> tuple[nn.Module, int, str]:
    """The module with the weights of the file, its number of classes, and a note.

    If the file's classifier has another number of rows than ``classes``, the module is built for that number. Without
    a file the weights are random, and the same every time. ``adapt`` turns the file's tensors into the module's.
    """
    if path is None:
        return seeded(lambda: build(classes)), classes, "random weights: no file was named after @"
    weights = adapt(read_weights(path))
    module = seeded(lambda: build(classes))
    rows = _rows(weights, module, classes)
    if rows != classes:
        module = seeded(lambda: build(rows))
    fit_weights(module, weights, path)
    return module, rows, ""


def _rows(weights: Mapping[str, Tensor], module: nn.Module, classes: int) -> int:
    """The N for which the weights' shapes differ from the module's in having N rows instead of ``classes``."""
    state = module.state_dict()
    pairs = [(weights[name].shape, tensor.shape) for name, tensor in state.items() if name in weights]
    rows = {given[0] for given, built in pairs if given != built and built == (classes, *given[1:])}
    return rows.pop() if len(rows) == 1 else classes


def unknown(what: str, name: str, known: Iterable[str], near: Sequence[str]) -> ModelError:
    """The error for a name that is not in a list; near matches are offered, never taken."""
    names = list(known)
    wanted = f"one of {', '.join(names)}" if len(names) <= 12 else f"one of {len(names)} names"
    return ModelError(
        f"unknown {what}", got=name, wanted=wanted, fix=f"did you mean {', '.join(near)}?" if near else None
    )
