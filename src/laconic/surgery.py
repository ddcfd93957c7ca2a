"""Looking into an eager model and changing it: modules by name, calls as they happen, batch norm folded.

A *call* is one torch function applied to tensors while the model runs. Its key is stable between runs of the same
code: the path of the module that was running, the function's name, and a count (``layer1.0/add#0``). A *value* is what
a call gave, named by the call's key, or ``input/NAME``. :func:`trace` records the calls of one run; :func:`watched`
lets a handler see, and replace, the result of every call. Both work on any code that eager torch can run, control
flow included, and under ``torch.export``: what a handler does is traced with the rest.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from laconic.errors import RecipeError

_T = TypeVar("_T")
_SUGGESTED, _ALIKE = 3, 0.5

_FAMILIES: dict[str, Sequence[Callable[..., Any]]] = {
    "conv": (F.conv1d, F.conv2d, F.conv3d),
    "linear": (F.linear,),
    "matmul": (torch.matmul, torch.bmm, torch.mm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm),
    "add": (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__),
    "mul": (torch.mul, Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__),
    "relu": (F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_),
    "clamp": (F.relu6, F.hardtanh, F.hardtanh_, torch.clamp, torch.clip, Tensor.clamp, Tensor.clip, Tensor.clamp_),
    "max_pool": (F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d),
    "avg_pool": (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d),
    "mean": (torch.mean, Tensor.mean),
    "reshape": (
        *(torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.transpose, torch.permute),
        *(Tensor.flatten, Tensor.reshape, Tensor.view, Tensor.squeeze, Tensor.unsqueeze, Tensor.transpose),
        *(Tensor.permute, Tensor.contiguous),
    ),
    "slice": (Tensor.__getitem__,),
    "concat": (torch.cat, torch.concat),
    "pad": (F.pad,),
    "dropout": (F.dropout, F.dropout2d),
    "batch_norm": (F.batch_norm,),
    "recurrent": (
        *(torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu),
        *(torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell),
    ),
}
_FAMILY_OF: dict[Callable[..., Any], str] = {f: family for family, functions in _FAMILIES.items() for f in functions}


@dataclass(frozen=True)
class Call:
    """One call: ``family`` is its kind (``conv``, ``add``, ... or the function's own name), ``module`` the path of
    the module that made it; ``inputs`` and ``outputs`` are names of values; ``bounds`` is what a clamp or a relu
    keeps; ``channel_pad`` tells a padding of channels from one of space (padding with another number than zero is of
    the family ``fill``); ``dims`` is the first output's rank; ``one_place`` tells a convolution that is a linear layer
    by another name: 1x1 on a map of one place."""

    key: str
    family: str
    module: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bounds: tuple[float, float] | None = None
    channel_pad: bool = False
    dims: int = 0
    one_place: bool = False


@dataclass(frozen=True)
class Graph:
    """The calls of one run, in order, and the values that went in and came out."""

    calls: tuple[Call, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def producer(self) -> dict[str, Call]:
        return {name: call for call in self.calls for name in call.outputs}

    def consumers(self) -> dict[str, list[Call]]:
        users: dict[str, list[Call]] = {}
        for call in self.calls:
            for name in call.inputs:
                users.setdefault(name, []).append(call)
        return users


Handler = Callable[[str, str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""``handler(key, module, function, args, kwargs) -> result``; it calls the function itself."""


class _Watch(TorchFunctionMode):
    def __init__(self, model: nn.Module, handler: Handler) -> None:
        super().__init__()
        self.handler = handler
        self.names = {module: name for name, module in reversed(list(model.named_modules()))}
        self.stack: list[str] = []
        self.counts: Counter[tuple[str, str]] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        module = self.stack[-1] if self.stack else ""
        name = getattr(func, "__name__", str(func)).strip("_")
        index = self.counts[module, name]
        self.counts[module, name] += 1
        return self.handler(f"{module}/{name}#{index}", module, func, args, kwargs or {})

    def enter(self, module: nn.Module, args: Any) -> None:
        if module in self.names:
            self.stack.append(self.names[module])

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if module in self.names:
            self.stack.pop()


@contextmanager
def watched(model: nn.Module, handler: Handler) -> Iterator[None]:
    """While this lasts, every torch function that ``model`` calls goes through ``handler``."""
    watch = _Watch(model, handler)
    hooks = nn.modules.module
    before = hooks.register_module_forward_pre_hook(watch.enter)
    after = hooks.register_module_forward_hook(watch.leave)
    try:
        with watch:
            yield
    finally:
        before.remove()
        after.remove()


def call(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run the model on named inputs: one input goes by position, several by keyword; outputs come back named.

    A tensor is named ``output``, a tuple ``output_0``, ..., a mapping keeps its names.
    """
    result = model(*inputs.values()) if len(inputs) == 1 else model(**inputs)
    if isinstance(result, Tensor):
        return {"output": result}
    if isinstance(result, Mapping):
        return {str(name): value for name, value in result.items() if isinstance(value, Tensor)}
    return {f"output_{i}": value for i, value in enumerate(result)}


def trace(model: nn.Module, inputs: Mapping[str, Tensor]) -> Graph:
    """The calls that ``model`` makes on ``inputs`` (axis 0 is the sample), in order. Only float values are named."""
    names: MutableMapping[Tensor, str] = WeakIdKeyDictionary()  # no value is kept for its name
    calls: list[Call] = []

    def handler(key: str, module: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        used = tuple(names[t] for t in _tensors((args, kwargs)) if t in names)
        result = func(*args, **kwargs)
        made = {name: t for name, t in named_results(key, result) if isinstance(t, Tensor) and t.is_floating_point()}
        if made and used:
            family = _FAMILY_OF.get(func, getattr(func, "__name__", str(func)).strip("_"))
            if family == "pad" and _pads_with_number(*args, **kwargs):
                family = "fill"
            padded = family == "pad" and _pads_channels(*args, **kwargs)
            bounds, first = _bounds(func, family, args, kwargs), next(iter(made.values()))
            one_place = family == "conv" and _has_one_place(first, *args, **kwargs)
            calls.append(Call(key, family, module, used, tuple(made), bounds, padded, first.dim(), one_place))
            for name, tensor in made.items():
                names[tensor] = name
        return result

    for name, tensor in inputs.items():
        if tensor.is_floating_point():
            names[tensor] = f"input/{name}"
    entered = tuple(names.values())
    with torch.no_grad(), watched(model, handler):
        outputs = call(model, inputs)
    return Graph(tuple(calls), entered, tuple(names.get(t, "") for t in outputs.values()))


def named_results(key: str, result: Any) -> Iterator[tuple[str, Any]]:
    """The values that a call gave, with their names: the call's key, then ``key:1``, ``key:2`` of a tuple."""
    parts = result if isinstance(result, (tuple, list)) else (result,)
    for i, part in enumerate(parts):
        yield (key if i == 0 else f"{key}:{i}"), part


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _bounds(func: Callable[..., Any], family: str, args: Any, kwargs: Any) -> tuple[float, float] | None:
    """What a relu (0, inf), relu6 (0, 6) or clamp keeps; None for other calls and for bounds that are tensors."""
    if family == "relu":
        return 0.0, math.inf
    if func is F.relu6:
        return 0.0, 6.0
    if family != "clamp":
        return None
    named: dict[str, Any] = (
        {"min": -1.0, "max": 1.0} if func in (F.hardtanh, F.hardtanh_) else {"min": None, "max": None}
    )
    named.update(zip(named, args[1:], strict=False))
    named.update({name.removesuffix("_val"): value for name, value in kwargs.items() if name != "inplace"})
    low, high = named["min"], named["max"]
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return None
    return (-math.inf if low is None else float(low)), (math.inf if high is None else float(high))


def _has_one_place(output: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> bool:
    """Whether a convolution is 1x1, from a map of one place to another, and reads all channels."""
    places = {x.shape[2:].numel() for x in (output, input, weight)}
    return places == {1} and weight.shape[1] == input.shape[1]


def _pads_channels(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> bool:
    """Whether ``F.pad`` pads axis 1 of an (n, c, h, w) tensor."""
    return any(pad[2 * (input.dim() - 2) :])


def _pads_with_number(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> bool:
    """Whether ``F.pad`` brings in a number that need not be in its input's range; -inf (before max pooling) is none."""
    return mode == "constant" and value is not None and value != 0 and math.isfinite(value)


def matches(name: str, globs: Sequence[str]) -> bool:
    """Whether a layer's name matches one of the user's globs (``features.*``); a plain prefix names a whole branch."""
    return any(fnmatch.fnmatchcase(name, glob) or name.startswith(glob + ".") for glob in globs)


def stated(name: str, by_globs: Mapping[str, _T]) -> _T | None:
    """What is said of a layer by globs of its name, the last that matches counting; None where nothing is."""
    found = [value for glob, value in by_globs.items() if matches(name, (glob,))]
    return found[-1] if found else None


def require_matches(what: str, globs: Iterable[str], names: Sequence[str]) -> None:
    """Refuse a glob that matches none of ``names``, and suggest the names that look like it; ``what`` says where it
    stands. Raises :class:`RecipeError`."""
    for glob in globs:
        if not any(matches(name, (glob,)) for name in names):
            near = difflib.get_close_matches(glob, names, _SUGGESTED, _ALIKE) or names
            raise RecipeError(f"{what} names no layer", got=repr(glob), wanted=f"a glob of {', '.join(near)}")


def set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place called ``name``."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
"""A layer with a weight of (out channels, in channels / groups, ...)."""


def weighted_layers(model: nn.Module) -> dict[str, Layer]:
    """The convolutions and linear layers, by name, in the order of definition; subclasses that compute otherwise
    (lazy, transposed) are not among them."""
    return {name: cast(Layer, m) for name, m in model.named_modules() if _kind(m) in get_args(Layer)}


def _kind(module: nn.Module) -> type:
    """The module's class as it was before parametrizations made a subclass of it."""
    return type(module).__mro__[1] if parametrize.is_parametrized(module) else type(module)


def give_bias(layer: Layer) -> None:
    """Give a layer without a bias one of zeros."""
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros(len(layer.weight)))


def output_layers(graph: Graph) -> set[str]:
    """The weighted layers, and recurrent modules, whose channels are the model's outputs: nothing weighted comes behind
    them."""
    producer, todo, found = graph.producer(), list(graph.outputs), set()
    while todo:
        step = producer.get(todo.pop())
        if step is None:
            continue
        if step.family in ("conv", "linear", "matmul", "recurrent"):
            found.add(step.module)
        else:
            todo.extend(step.inputs)
    return found


def fold_batch_norm(model: nn.Module, graph: Graph) -> list[tuple[str, str]]:
    """Fold each batch norm into the convolution or linear layer before it, in place; returns the pairs folded.

    w' = w g / sqrt(v + eps), b' = (b - m) g / sqrt(v + eps) + beta. Folded are the pairs in which the layer feeds the
    batch norm alone, both are called once, the weight is nobody else's and the norm is over the layer's channels.
    """
    producer, consumers = graph.producer(), graph.consumers()
    times = Counter(c.module for c in graph.calls if c.family in ("conv", "linear", "batch_norm"))
    layers = weighted_layers(model)
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    folded = []
    for step in graph.calls:
        source = producer.get(step.inputs[0]) if step.inputs else None
        if step.family != "batch_norm" or source is None or source.module not in layers:
            continue
        if len(consumers[source.key]) > 1 or source.key in graph.outputs:
            continue
        layer, norm = layers[source.module], model.get_submodule(step.module)
        if times[step.module] > 1 or times[source.module] > 1 or not _follows_gains(layer):
            continue
        if isinstance(layer, nn.Linear) and source.dims != 2:  # batch norm's channels are axis 1, the layer's the last
            continue
        if owners[id(parameter_of(layer))] > 1 or not isinstance(norm, nn.modules.batchnorm._BatchNorm):
            continue
        if norm.running_mean is None:
            continue
        _fold(layer, norm)
        set_module(model, step.module, nn.Identity())
        folded.append((source.module, step.module))
    return folded


def parameter_of(layer: Layer) -> nn.Parameter:
    """The parameter that a layer's weight is, or that its first parametrization reads."""
    if not parametrize.is_parametrized(layer, "weight"):
        return cast(nn.Parameter, layer.weight)
    return cast(nn.Parameter, layer.parametrizations["weight"].original)  # type: ignore[index, union-attr]


def own_class(layer: nn.Module) -> None:
    """Give a parametrized layer a class of its own. A copy of one shares the class that torch made for the original,
    and what is registered or removed on one of them changes that class: the original would lose its weight."""
    if parametrize.is_parametrized(layer):
        kind = type(layer)
        layer.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))


def _follows_gains(layer: Layer) -> bool:
    """Whether a factor on the channels of :func:`parameter_of` is one on the weight's: it is plain, or masked."""
    if not parametrize.is_parametrized(layer):
        return True
    return all(getattr(link, "follows_gains", False) for link in layer.parametrizations["weight"])  # type: ignore[index]


@torch.no_grad()
def _fold(layer: Layer, norm: nn.modules.batchnorm._BatchNorm) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = torch.rsqrt(norm.running_var.double() + norm.eps)
    shift = torch.zeros_like(gain)
    if norm.affine:
        gain, shift = gain * norm.weight.double(), norm.bias.double()
    bias = torch.zeros_like(gain) if layer.bias is None else layer.bias.double()
    parameter_of(layer).mul_(gain.reshape(-1, *[1] * (layer.weight.dim() - 1)))
    layer.bias = nn.Parameter(((bias - norm.running_mean.double()) * gain + shift).to(layer.weight.dtype))
