"""Run a model once and record every torch operator that it uses, with the values it reads and writes.

A *value* is a piece of memory: a tensor's storage. Views share it, what is written in place keeps it. Two things that
exist only while weights or activations are simulated are seen through: what a parametrization computes *is* its
layer's weight, and what an activation quantizer gives *is* the value that it rounds, in fewer bits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from laconic.fake_quantize import FakeQuantize
from laconic.profile import backward, operators
from laconic.profile.weights import Stored

Kind = Literal["weight", "input", "made"]
_QUANTIZERS = "activation_quantizers"


@dataclass
class Value:
    """A piece of memory of so many ``bits``: a weight, an input of the model, or what an operator made.

    ``item_bits`` are those of one number in it; ``trains``: a gradient with respect to it is wanted.
    """

    kind: Kind
    bits: float
    item_bits: float
    trains: bool

    @property
    def size_bytes(self) -> int:
        return math.ceil(self.bits / 8)

    def narrow(self, item_bits: float) -> None:
        """It holds numbers of fewer bits."""
        if item_bits < self.item_bits:
            self.bits, self.item_bits = self.bits * item_bits / self.item_bits, item_bits


@dataclass(frozen=True)
class Operator:
    """One call of an operator that reads or writes memory. ``reads`` and ``writes``: elements touched, by value.

    ``joined``: a runtime computes it where its input is made. ``operands``: the values whose numbers it computes with:
    the factors of a product, else what it writes. ``kept``: the values that its gradient needs; ``trained``: those that
    it has gradients for.
    """

    name: str
    layer: str
    macs: int
    flops: int
    joined: bool
    reads: dict[int, int]
    writes: dict[int, int]
    operands: tuple[int, ...]
    backward_macs: int
    kept: dict[int, int]
    trained: dict[int, int]


@dataclass
class Recording:
    """The operators of one run in order, and the values they touch; ``unknown`` counts the calls of those that are in
    no table."""

    values: list[Value] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    inputs: set[int] = field(default_factory=set)
    outputs: set[int] = field(default_factory=set)
    unknown: Counter[str] = field(default_factory=Counter)

    def bytes_of(self, touched: dict[int, int]) -> dict[int, int]:
        """The bytes of what is touched of each value, in the bits that it turned out to have."""
        return {value: math.ceil(n * self.values[value].item_bits / 8) for value, n in touched.items()}


class Recorder(TorchDispatchMode):
    """While active, records what operators do, by the path of the innermost module that is running."""

    def __init__(self, float_bits: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.float_bits = float_bits
        self.found = Recording()
        self.running: list[str] = [""]
        self._known: dict[int, tuple[StorageWeakRef, int]] = {}  # a storage's address is its own while a weak one lives

    def register(self, tensor: Tensor, kind: Kind, item_bits: float | None = None, trains: bool = False) -> int:
        """The value that a tensor's memory is; a new one of this kind if it was not seen before."""
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        if reference.cdata not in self._known:
            own = 8 * tensor.element_size()
            stated = item_bits or (min(own, self.float_bits) if tensor.is_floating_point() else own)
            self._known[reference.cdata] = reference, len(self.found.values)
            self.found.values.append(Value(kind, storage.nbytes() * 8 * stated / own, stated, trains))
        return self._known[reference.cdata][1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given, made = _tensors((args, kwargs)), _tensors(result)
        if _simulates(self.running[-1]):
            self._see_through(given, made)
        elif not operators.is_view(func):
            self._record(func, args, given, result, made)
        return result

    def _see_through(self, given: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        """What a simulation computes of a value is that value. A codebook that is looked up is one too."""
        sources = [self.register(x, "made") for x in given if x.is_floating_point()]
        if not sources:
            return
        source = max(sources, key=lambda value: self.found.values[value].bits)
        for y in made:
            reference = StorageWeakRef(y.untyped_storage())  # type: ignore[no-untyped-call]
            self._known.setdefault(reference.cdata, (reference, source))

    def _record(self, func: Any, args: Any, given: Sequence[Tensor], result: Any, made: Sequence[Tensor]) -> None:
        name, values = func._schema.name, self.found.values
        if not operators.is_known(func):
            self.found.unknown[name] += 1
        reads = self._touched(given[1:] if name in operators.OVERWRITES else given)
        if name in operators.PICKS and given:
            first = self.register(given[0], "made")
            reads[first] = min(reads[first], made[0].numel())
        trains = any(values[value].trains for value in reads)
        for y in made:
            value = values[self.register(y, "made")]
            value.trains = value.trains or (trains and y.is_floating_point())
        if name in operators.UNWRITTEN or not made:
            return
        macs, writes = operators.macs_of(func, args, result), made[:1] if name in operators.ONE_OUTPUT else made
        operands = operators.factors_of(name, args) if macs else writes
        trains = trains and any(y.is_floating_point() for y in made)
        trained = {value: n for value, n in reads.items() if values[value].trains} if trains else {}
        self.found.operators.append(
            Operator(
                name=name,
                layer=self.running[-1],
                macs=macs,
                flops=operators.flops_of(func, args, result),
                joined=operators.is_joined(func, args),
                reads=reads,
                writes=self._touched(writes),
                operands=tuple(self._touched(operands)),
                backward_macs=backward.macs_of(name, macs, args, self._trains),
                kept=self._touched(backward.kept_by(name, args, result, self._trains)),
                trained=trained,
            )
        )

    def _touched(self, tensors: Sequence[Tensor]) -> dict[int, int]:
        """Elements by value; an axis along which a number is repeated (stride 0) counts once."""
        found: dict[int, int] = {}
        for x in tensors:
            n = math.prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride)
            value = self.register(x, "made")
            found[value] = max(found.get(value, 0), n)
        return found

    def _trains(self, x: Any) -> bool:
        return isinstance(x, Tensor) and self.found.values[self.register(x, "made")].trains


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.layout is torch.strided]


def _simulates(path: str) -> bool:
    return "parametrizations." in path or path.partition(".")[0] == _QUANTIZERS


def layer_of(path: str) -> str:
    """The layer that a module belongs to: itself, unless it is part of a parametrization."""
    return path.partition("parametrizations.")[0].rstrip(".") if "parametrizations." in path else path


@contextmanager
def recorded(model: nn.Module, stored: dict[str, Stored], inputs: Sequence[Tensor]) -> Iterator[Recorder]:
    """Record what ``model`` does, in eval mode and without torch's fused paths, which hide operators.

    ``stored`` says in how many bits each weight is stored; ``inputs`` are the model's.
    """
    recorder = Recorder(float_bits=32 if getattr(model, "precision", "f32") == "f32" else 16)
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        layer = stored.get(layer_of(path.rpartition(".")[0]))
        bits = layer.bits if layer and "parametrizations.weight." in path else None
        recorder.register(tensor, "weight", bits, trains=isinstance(tensor, nn.Parameter))
    recorder.found.inputs = {recorder.register(x, "input") for x in inputs}
    modes = [(module, module.training) for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        for path, module in model.named_modules():
            enter, leave = _hooks(recorder, path, module)
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        torch.backends.mha.set_fastpath_enabled(False)
        for module, training in modes:
            stack.callback(setattr, module, "training", training)
        model.eval()
        stack.enter_context(torch.no_grad())
        stack.enter_context(recorder)
        yield recorder


def _hooks(recorder: Recorder, path: str, module: nn.Module) -> tuple[Callable[..., None], Callable[..., None]]:
    quantizes = path.startswith(f"{_QUANTIZERS}.") and isinstance(module, FakeQuantize)

    def enter(module: nn.Module, inputs: Any) -> None:
        recorder.running.append(path)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        recorder.running.pop()
        if quantizes and isinstance(output, Tensor):
            levels = module.qmax - module.qmin + 1  # type: ignore[operator]
            value = recorder.register(output, "made")
            recorder.found.values[value].narrow(math.ceil(math.log2(levels)))

    return enter, leave
