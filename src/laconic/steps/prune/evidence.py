"""What criteria are told of a layer beside its weights: gradients, second moments of its inputs, shares of zeros.

Gradients are taken sample by sample, of the task's loss where there are labels. Without them the label is drawn from
what the original model says, sample by sample: the mean of the squares is then the Fisher information, the curvature of
the divergence from the original (Martens 2014, arXiv 1412.1193, section 9). The gradient of that divergence itself is
of no use: it is zero at the original. Batch norms use their running statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Batch, Context, Task
from laconic.errors import DataError, TrialError
from laconic.steps.prune.cut import matrix_of
from laconic.steps.quantize.layerwise import _groups, _rows
from laconic.steps.quantize.observe import calibration_inputs

SAMPLES = 64
"""Gradients are those of at most so many samples."""
_LEAST_SAMPLES = 8
_NUMBERS = 2**27  # in the gradients of a portion: 512 MiB; a larger layer gets fewer samples
_MOST_ROWS = 2**13
_ROW_NUMBERS = 2**25
Name = TypeVar("Name")


@dataclass(frozen=True)
class Evidence:
    """Of one layer: ``weight`` (out, inputs), and, where a criterion asks for them, ``gradients`` (samples, out,
    inputs), ``moments`` E[x x'] (groups, inputs, inputs) of what it reads, and ``zeros`` (in channels,), the share of
    zeros in that."""

    weight: Tensor
    gradients: Tensor | None = None
    moments: Tensor | None = None
    zeros: Tensor | None = None


def gather(
    model: nn.Module, names: Sequence[str], needs: frozenset[str], task: Task, context: Context
) -> dict[str, Evidence]:
    """The evidence of the layers called ``names``; ``needs`` is of ``gradients``, ``moments``, ``zeros``.

    Raises :class:`DataError` where data, or labels and a teacher, are missing.
    """
    model.eval()
    layers = {name: surgery.weighted_layers(model)[name] for name in names}
    found = {name: Evidence(matrix_of(layer.weight.detach())) for name, layer in layers.items()}
    if "gradients" in needs:
        for name, gradients in _gradients(model, layers, task, context).items():
            found[name] = replace(found[name], gradients=gradients)
    if needs & {"moments", "zeros"}:
        moments, zeros = _inputs(model, layers, needs, task, context)
        for name in layers:
            if name not in (moments or zeros):
                raise TrialError(f"{name} is never called: nothing is known of its inputs")
            found[name] = replace(found[name], moments=moments.get(name), zeros=zeros.get(name))
    return found


def portions(numbers: Mapping[Name, int], needs: frozenset[str]) -> Iterator[list[Name]]:
    """The names in portions whose gradients fit the memory; ``numbers``: weights by name."""
    some: list[Name] = []
    held = 0
    for name, count in numbers.items():
        size = count * SAMPLES if "gradients" in needs else 0
        if some and held + size > _NUMBERS:
            yield some
            some, held = [], 0
        some.append(name)
        held += size
    if some:
        yield some


def _gradients(
    model: nn.Module, layers: Mapping[str, surgery.Layer], task: Task, context: Context
) -> dict[str, Tensor]:
    loss = sample_loss(task, context)
    parameters = {name: surgery.parameter_of(layer) for name, layer in layers.items()}
    numbers = sum(p.numel() for p in parameters.values())
    samples = len(next(iter(calibration_inputs(task).values())))
    count = min(SAMPLES, samples, max(_LEAST_SAMPLES, 2 * _NUMBERS // numbers))
    found = {name: torch.empty(count, *matrix_of(p).shape) for name, p in parameters.items()}
    wanted = [(p, p.requires_grad) for p in parameters.values()]
    try:
        for parameter, _ in wanted:
            parameter.requires_grad_(True)
        for i in range(count):
            with torch.enable_grad():
                value = loss(model, task.train.read([i]))
                each: Sequence[Tensor | None] = torch.autograd.grad(value, [*parameters.values()], allow_unused=True)
            for name, gradient in zip(parameters, each, strict=True):
                found[name][i] = 0.0 if gradient is None else matrix_of(gradient)
            context.progress("gradients", (i + 1) / count)
    finally:
        for parameter, before in wanted:
            parameter.requires_grad_(before)
    for name, gradients in found.items():
        if not bool(torch.isfinite(gradients).all()):
            raise TrialError(f"gradients of {name} that are not finite")
    return found


def sample_loss(task: Task, context: Context) -> Callable[[nn.Module, Batch], Tensor]:
    """The loss of a batch, towards its labels or towards labels drawn from what the original says."""
    generator = torch.Generator().manual_seed(context.seed)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        inputs = {name: torch.as_tensor(x) for name, x in batch.inputs.items()}
        outputs = surgery.call(model, inputs)
        if task.loss is not None and batch.targets is not None:
            value: Tensor = task.loss(outputs, torch.as_tensor(batch.targets))
            return value
        if context.reference is None:
            raise DataError("a criterion that needs a loss", got="neither labels nor a teacher", wanted="one of them")
        said = next(iter(context.reference(inputs).values())).detach()
        drawn = torch.multinomial(said.flatten(0, -2).softmax(1), 1, generator=generator).squeeze(1)
        return F.cross_entropy(next(iter(outputs.values())).flatten(0, -2), drawn)

    return loss


@torch.no_grad()
def _inputs(
    model: nn.Module, layers: Mapping[str, surgery.Layer], needs: frozenset[str], task: Task, context: Context
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Second moments and shares of zeros, each layer's at its first call."""
    generator = torch.Generator().manual_seed(context.seed)
    moments: dict[str, Tensor] = {}
    zeros: dict[str, Tensor] = {}

    def handler(key: str, module: str, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        layer = layers.get(module)
        if layer is None or not calls_layer(key) or module in moments or module in zeros:
            return result
        if not bool(torch.isfinite(args[0]).all()):
            raise TrialError(f"values that are not finite in front of {module}")
        if "zeros" in needs:
            axis = args[0].dim() - 1 if isinstance(layer, nn.Linear) else 1
            zeros[module] = (args[0] == 0).float().mean([d for d in range(args[0].dim()) if d != axis])
        if "moments" in needs:
            x = _rows(layer, args, kwargs, drawn_places(layer, result, generator))  # g r k
            moments[module] = (x.transpose(1, 2).double() @ x.double() / x.shape[1]).float()
            context.progress("inputs", len(moments) / len(layers))
        return result

    with surgery.watched(model, handler):
        surgery.call(model, calibration_inputs(task))
    return moments, zeros


def calls_layer(key: str) -> bool:
    """Whether a call's key is that of a convolution or a linear layer."""
    return "/conv" in key or "/linear" in key


def drawn_places(layer: surgery.Layer, result: Tensor, generator: torch.Generator) -> Tensor:
    """Places of a layer's output, drawn at random, as many as its inputs' rows may take memory."""
    axis = result.dim() - 1 if isinstance(layer, nn.Linear) else 1
    inputs_each = layer.weight[0].numel() * _groups(layer)
    most = max(2**11, min(_MOST_ROWS, _ROW_NUMBERS // inputs_each))
    return torch.randperm(result.numel() // result.shape[axis], generator=generator)[:most].sort().values
