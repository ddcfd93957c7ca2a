"""Where training runs, and in what: on the graphics card where torch has one, else on the processor.

Channels lie last, and convolutions and linear layers compute in bf16 (torch's autocast): the kernels of cards are made
for both, and so are those of processors that have instructions for bf16; other processors compute in float32. A model
that asks for a view of values that lie otherwise (``x.view(len(x), -1)``) keeps its channels first.

A small network's step on a card is hundreds of kernels of a few microseconds each, and Python takes longer to launch
them than the card to run them. So after a few steps the whole of a step, optimizer included, is recorded as a CUDA
graph and replayed; a model that cannot be recorded (it waits for a number, say) is trained on as before. Sums on a card
are taken in no fixed order: there a seed decides the result but for its last digits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Array

Step = Callable[[Mapping[str, Tensor], Tensor | None], Tensor]
"""``step(inputs, targets) -> loss``: one step of training."""

_WARM_UP = 3  # steps before recording: libraries choose their kernels, the optimizer makes its state


def training_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def moved(x: Array, device: torch.device) -> Tensor:
    """``x`` as a tensor on ``device``; what goes to a card goes there while the card is still busy with the last."""
    tensor = torch.as_tensor(x)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@contextmanager
def placed(model: nn.Module, device: torch.device, example: Mapping[str, Array]) -> Iterator[None]:
    """While this lasts, ``model`` is on ``device``, in evaluation mode; its channels lie last if it can compute
    ``example`` so. Then it is on the processor again, channels first."""
    model.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        if not _computes(model, {name: moved(x, device) for name, x in example.items()}):
            model.to(memory_format=torch.contiguous_format)
        yield
    finally:
        model.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]


@torch.no_grad()
def _computes(model: nn.Module, inputs: Mapping[str, Tensor]) -> bool:
    try:
        surgery.call(model, inputs)
    except Exception:  # whatever a model raises for a view that it cannot have
        return False
    return True


def precision(device: torch.device) -> AbstractContextManager[Any]:
    """In what training computes on ``device``: in bf16 on a card and on a processor that multiplies it, else in
    float32. (torch would do what a processor cannot in more steps, which takes longer than float32.)"""
    can = torch.cpu.get_capabilities()
    enabled = device.type != "cpu" or bool(can.get("avx512_bf16") or can.get("amx_bf16"))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)


class Teacher:
    """What a model gives for inputs on any device; on other devices than its own by copies of it, which are kept."""

    def __init__(self, model: nn.Module) -> None:
        self._copies = {torch.device("cpu"): model}

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        device = next(iter(inputs.values())).device
        if device not in self._copies:
            self._copies[device] = copy.deepcopy(self._copies[torch.device("cpu")]).to(device)
        return surgery.call(self._copies[device], inputs)


class Recorded:
    """A step on a CUDA device that is replayed from a graph; all its batches have one size. The loss that a call gives
    is overwritten by the next."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._calls = 0
        # what is run before recording must not be on the default stream
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: dict[str, Tensor] = {}
        self._targets: Tensor | None = None
        self._loss = torch.empty(())

    def __call__(self, inputs: Mapping[str, Tensor], targets: Tensor | None) -> Tensor:
        self._calls += 1
        if self._calls == _WARM_UP + 1:
            self._record(inputs, targets)
        if self._graph is None:
            return self._aside(inputs, targets)
        for name, x in inputs.items():
            self._inputs[name].copy_(x)
        if targets is not None and self._targets is not None:
            self._targets.copy_(targets)
        self._graph.replay()
        return self._loss

    def _aside(self, inputs: Mapping[str, Tensor], targets: Tensor | None) -> Tensor:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            loss = self._step(inputs, targets)
        torch.cuda.current_stream().wait_stream(self._stream)
        return loss

    def _record(self, inputs: Mapping[str, Tensor], targets: Tensor | None) -> None:
        self._inputs = {name: x.clone() for name, x in inputs.items()}
        self._targets = None if targets is None else targets.clone()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._loss = self._step(self._inputs, self._targets)
        except RuntimeError:  # nothing has been computed yet: the model does what a graph cannot hold
            torch.cuda.synchronize()
            return
        self._graph = graph
