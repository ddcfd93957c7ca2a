"""Codes that are cheap to store: each weight goes to the level whose error and whose bits cost least together.

Rate-distortion-optimised quantization, as for DeepCABAC (Wiedemann et al. 2019, arXiv 1907.11900, eq. 2): the least

    sum_i F_i (w_i - q_i)^2 / 2 + lambda bits(q_i)

Here F is the Fisher information in its Kronecker-factored form (Martens and Grosse 2015, arXiv 1503.05671; for
convolutions Grosse and Martens 2016, arXiv 1602.01407), F = G (x) X X^T: X is what the layer reads, and G, of which the
diagonal is taken, what the network's own predictions say of the layer's outputs. Labels are drawn from them, so none
are needed. To second order the sum is then the divergence KL(before || after) in nats. An error is passed on to the
weights that are still to be rounded, as in GPTQ (:mod:`.gptq`): with U the upper Cholesky factor of (X X^T)^-1, for the
columns j of W in turn

    q_j = argmin_q  F_j (w_j - q)^2 / 2 + lambda bits(q),  e = (w_j - q_j) / U_jj,  w_k -= e U_jk for k > j

with the diagonal of F. (With what is left of an error when those behind have made up for it, G e^2, first weights are
given up for nothing, and the last ones would have to be larger than any level.)

``bits`` is -log2 of the share that a level has among the layer's codes, which are therefore chosen several times; the
context-adaptive coder of ``.lac`` files comes a few percent below it. The scales stay: put a quantizer of one or two
bits more than are wanted before this step. The biases are corrected behind it (:mod:`.bias_correction`).

Cost: the calibration samples forwards and backwards through the network, and three times what GPTQ costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Context, Facts, Task
from laconic.errors import RecipeError
from laconic.steps.quantize import rounding
from laconic.steps.quantize.gptq import factor
from laconic.steps.quantize.layerwise import Rows, choose_codes, give_biases
from laconic.steps.quantize.observe import calibration_inputs
from laconic.steps.settings import check_types

_ROUNDS = 3
_BLOCK = 128
_BATCH = 16
_NEAR = 2  # levels on the side of zero that a weight may go to, beside zero and the nearest


@dataclass(frozen=True)
class RateDistortion:
    """Choose the codes of quantized weights by error and bits. ``nats_per_megabit``: how far the predictions may move,
    as KL divergence per sample, for a million bits less; 0 counts the error alone."""

    nats_per_megabit: float = 0.3

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_types(self)
        if not (math.isfinite(self.nats_per_megabit) and self.nats_per_megabit >= 0):
            raise RecipeError("nats_per_megabit of RateDistortion", got=self.nats_per_megabit, wanted="0 or more")

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        layers = rounding.rounded_layers(model, "RateDistortion")
        names = {layer: name for name, layer in layers.items()}
        weights_of = sensitivities(model, list(layers), task, context)
        bits: dict[str, float] = {}

        def choose(layer: Any, rows: Rows) -> Tensor:
            weight, q, name = rounding.float_weight(layer), rounding.quantizer_of(layer), names[layer]
            scale = rounding.scale_of(layer).expand_as(weight)
            zero = rounding.along_channels(q.zero_point, weight).expand_as(weight)
            hessian = (rows.x.transpose(1, 2) @ rows.x).double() / rows.x.shape[1]
            cost = weights_of[name].double().reshape(len(rows.x), -1) / (2 * self.nats_per_megabit / 1e6 or 1e-30)
            shaped = [rows.grouped(t) for t in (weight, scale, zero)]
            codes, bits[name] = cheapest(shaped[0], shaped[1], shaped[2], (q.qmin, q.qmax), hessian, cost)
            return codes.reshape(weight.shape)

        left = choose_codes(model, layers, task, context, choose)
        counted = sum(layers[name].weight.numel() for name in bits)
        mean = sum(bits[name] * layers[name].weight.numel() for name in bits) / max(counted, 1)
        return model, {"layers": len(layers) - len(left), "left": left, "entropy_bits": round(mean, 4)}

    def restore(self, model: Any, facts: Facts) -> Any:
        give_biases(rounding.rounded_layers(model, "RateDistortion"))
        return model


def cheapest(
    weight: Tensor, scale: Tensor, zero_point: Tensor, limits: tuple[int, int], hessian: Tensor, cost: Tensor
) -> tuple[Tensor, float]:
    """The codes of ``weight`` (groups, channels, inputs), and their entropy in bits.

    ``scale`` and ``zero_point`` are of the weight's shape; codes lie in ``limits``; ``hessian`` (groups, inputs,
    inputs) is the mean of x x^T; ``cost`` (groups, channels), in bits, is that of a squared error of the output of 1.
    """
    w, h = weight.double(), hessian.clone()
    diagonal = h.diagonal(dim1=1, dim2=2)
    dead = diagonal <= 0
    diagonal[dead] = 1.0
    w = w.masked_fill(dead[:, None], 0.0)
    upper, _ = factor(h)
    worth = cost[..., None] * h.diagonal(dim1=1, dim2=2)[:, None]  # g c k, bits for a squared error of a weight of 1
    s, z = scale.double(), zero_point.double()
    codes = torch.where(w == 0, z, (torch.round(w / s) + z).clamp(*limits))
    for _ in range(_ROUNDS):
        codes = chosen(w, s, z, limits, upper, worth, _bits(codes, limits))
    return codes.to(weight.dtype), _entropy(codes)


def _bits(codes: Tensor, limits: tuple[int, int]) -> Tensor:
    """The bits of each level (levels,): by its share, of one that does not occur as if it did once in half."""
    counts = torch.bincount((codes - limits[0]).long().flatten(), minlength=limits[1] - limits[0] + 1).double() + 0.5
    return -(counts / counts.sum()).log2()


def _entropy(codes: Tensor) -> float:
    shares = torch.unique(codes, return_counts=True)[1].double() / codes.numel()
    return float(-(shares * shares.log2()).sum())


def chosen(
    weight: Tensor, s: Tensor, z: Tensor, limits: tuple[int, int], upper: Tensor, worth: Tensor, bits: Tensor
) -> Tensor:
    """One round: every column's codes, cheapest first of those near, and its error passed on."""
    w, kept = weight.clone(), weight != 0  # zero is what pruning left, and stays
    codes = torch.empty_like(w)
    for start in range(0, w.shape[2], _BLOCK):
        stop = min(start + _BLOCK, w.shape[2])
        errors = torch.empty_like(w[:, :, start:stop])
        for j in range(start, stop):
            scale, zero, root = s[:, :, j], z[:, :, j], upper[:, j, j, None]
            nearest = (torch.round(w[:, :, j] / scale) + zero).clamp(*limits)
            inward = torch.sign(zero - nearest)
            steps = torch.arange(_NEAR + 1, dtype=w.dtype)
            near = nearest[..., None] + inward[..., None] * torch.minimum(steps, (zero - nearest).abs()[..., None])
            tried = torch.cat([near, zero[..., None]], -1)  # g c n
            error = w[:, :, j, None] - (tried - zero[..., None]) * scale[..., None]
            total = worth[:, :, j, None] * error.square() + bits[(tried - limits[0]).long()]
            best = total.argmin(-1, keepdim=True)
            code = torch.where(kept[:, :, j], tried.gather(-1, best)[..., 0], zero)
            codes[:, :, j] = code
            passed = (w[:, :, j] - (code - zero) * scale) / root  # g c
            w[:, :, j:stop] -= passed[:, :, None] * upper[:, None, j, j:stop]
            errors[:, :, j - start] = passed
        w[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
    return codes


def sensitivities(model: nn.Module, names: list[str], task: Task, context: Context) -> dict[str, Tensor]:
    """Of each layer's output channels (channels,) the mean over samples of (sum_t d log p(y | x) / d output_t)^2.

    t are the places of a map, whose errors are taken to be alike: they come from the same weights. (As if they were
    independent they would count 49 times too little where a mean over 7 x 7 places follows.) y is drawn from what the
    float network predicts: of classes where its first output is (n, classes), else of a normal distribution around it
    with variance 1. A channel counts half by itself and half as the mean of its layer: the few samples speak of few
    classes, and those that they do not speak of would otherwise be given up.
    """
    twin, inputs = rounding.float_network(model).eval(), calibration_inputs(task)
    count = len(next(iter(inputs.values())))
    generator = torch.Generator().manual_seed(context.seed)
    found: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            kept = output if output.requires_grad else output.detach().requires_grad_()
            kept.retain_grad()
            seen.setdefault(name, kept)
            return kept

        return hook

    handles = [twin.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        for start in range(0, count, _BATCH):
            context.progress("what the predictions depend on", start / count)
            seen.clear()
            with torch.enable_grad():
                outputs = surgery.call(twin, {key: x[start : start + _BATCH] for key, x in inputs.items()})
                likelihood = _log_likelihood(next(iter(outputs.values())), generator)
            if likelihood.requires_grad:
                likelihood.backward()  # type: ignore[no-untyped-call]
            for name, output in seen.items():
                if output.grad is not None:
                    axis = output.dim() - 1 if isinstance(twin.get_submodule(name), nn.Linear) else 1
                    together = output.grad.movedim(axis, -1).flatten(1, -2).sum(1) if output.dim() > 2 else output.grad
                    square = together.square().sum(0)
                    found[name] = found.get(name, torch.zeros_like(square)) + square / count
    finally:
        for handle in handles:
            handle.remove()
    layers = surgery.weighted_layers(twin)
    known = {name: found.get(name, torch.ones(len(layers[name].weight))) for name in names}
    return {name: (each + each.mean()) / 2 for name, each in known.items()}


def _log_likelihood(output: Tensor, generator: torch.Generator) -> Tensor:
    """Of a sample of what the network itself predicts, summed over the batch."""
    if output.dim() == 2 and output.shape[1] > 1:
        drawn = torch.multinomial(output.detach().softmax(1), 1, generator=generator)
        return output.log_softmax(1).gather(1, drawn).sum()
    noise = torch.randn(output.shape, generator=generator, dtype=output.dtype)
    return (output * noise).sum()
