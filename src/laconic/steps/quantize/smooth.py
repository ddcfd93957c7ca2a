"""SmoothQuant: outliers of activations are moved into the weights that read them.

Xiao et al. 2022, "SmoothQuant: accurate and efficient post-training quantization for large language models" (arXiv
2211.10438). Where linear layers read what a norm gives, Y = (X diag(s)^-1) (diag(s) W) (eq. 3): channel j of the norm
is divided by s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) (eq. 4), the maxima over the calibration samples and over all
the layers that read it. At alpha = 0.5 both sides get the same range, sqrt(max|X_j| max|W_j|).

The producer may be whatever has a gain for each channel: layer norm, RMS norm, group norm, batch norm, or another
weighted layer, also with a relu between (:mod:`.links`); the paper takes layer norms alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Context, Facts, Task
from laconic.errors import RecipeError
from laconic.fake_quantize import attached
from laconic.steps.quantize.links import Link, divide_outputs, links, moved, multiply_inputs, reach_in
from laconic.steps.quantize.observe import calibration_inputs, run_over
from laconic.steps.settings import check_types


@dataclass(frozen=True)
class Smooth:
    """Divide activations, and multiply the weights that read them, channel by channel; ``alpha``: 0 leaves all the
    difficulty with the activations' reader, 1 takes all of it from the activations."""

    alpha: float = 0.5

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 <= self.alpha <= 1:
            raise RecipeError("alpha of Smooth", got=self.alpha, wanted="0 to 1")

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        if attached(model) is not None:
            raise RecipeError("Smooth after Quantize", fix="smooth first, then quantize")
        inputs = calibration_inputs(task)
        example = {name: x[:2] for name, x in inputs.items()}
        graph = surgery.trace(model.eval(), example)
        candidates = links(model, graph, example)
        found = [link for link in candidates if _wanted(link, context.keep)]
        context.progress("observing channels", 0.0)
        largest = _largest(model, inputs, found)
        layers = surgery.weighted_layers(model)
        factors, moves = [], []
        for link in found:
            readers = [layers[name] for name in link.consumers]
            weight = torch.stack([reach_in(layer) for layer in readers]).amax(0)
            factor = _factor(largest[link.producer], weight, self.alpha)
            divide_outputs(model.get_submodule(link.producer), factor)
            moves.append(moved(*_layer_of(link, graph), factor))
            for layer in readers:
                multiply_inputs(layer, factor)
            factors.append([link.producer, list(link.consumers), float(factor.min()), float(factor.max())])
        return model, {"smoothed": factors, "moved": moves}

    def restore(self, model: Any, facts: Facts) -> Any:
        return model


def _layer_of(link: Link, graph: surgery.Graph) -> tuple[str, int]:
    """The layer whose channels the producer gives, a batch norm being part of the layer before it; and their axis."""
    calls = graph.producer()
    call = calls[link.value]
    if call.family == "batch_norm" and call.inputs[0] in calls:
        call = calls[call.inputs[0]]
    return call.module, -1 if call.family in ("linear", "layer_norm", "rms_norm") else 1


def _wanted(link: Link, keep: tuple[str, ...]) -> bool:
    """No clamp between, whose bounds would move, and no layer that is to be left alone."""
    return not link.clamps and not any(surgery.matches(name, keep) for name in (link.producer, *link.consumers))


@torch.no_grad()
def _largest(model: nn.Module, inputs: Mapping[str, Tensor], found: list[Link]) -> dict[str, Tensor]:
    """max|X_j| of what the readers of each link read: (channels,) by the producer's name."""
    layers = surgery.weighted_layers(model)
    reads = {
        value: (link.producer, -1 if isinstance(layers[name], nn.Linear) else 1)
        for link in found
        for name, value in zip(link.consumers, link.reads, strict=True)
    }
    largest: dict[str, Tensor] = {}

    def see(value: str, x: Tensor) -> None:
        producer, axis = reads[value]
        channels = x.abs().movedim(axis, 0).flatten(1).amax(1)
        largest[producer] = channels.maximum(largest.get(producer, channels))

    run_over(model, inputs, dict.fromkeys(reads, see))
    return largest


def _factor(largest: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """s_j (eq. 4); 1 for a channel that is always 0 or that nothing reads."""
    factor = largest.pow(alpha) / weight.pow(1 - alpha)
    return factor.where((largest > 0) & (weight > 0), 1.0)
