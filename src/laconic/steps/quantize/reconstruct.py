"""Block reconstruction: the rounding of several layers is learned together, from what their block then gives.

BRECQ (Li et al. 2021, arXiv 2102.05426): block by block, minimise the squared error of the block's output, over V of
the soft rounding of all its weights (:mod:`.rounding`). With it are learned the scales of the block's activations, by
LSQ's gradient (Esser et al. 2020, arXiv 1902.08153, eq. 3):

    dx^/ds = round(x/s) - x/s inside the range, n or p at its ends

QDrop (Wei et al. 2022, arXiv 2203.05740, eq. 4-6): in training each activation is left in float with probability 0.5,
and the block's input is the float network's with the same probability; so the weights do not get used to the errors of
the calibration samples. Then the codes are decided and the biases corrected, layer after layer
(:mod:`.bias_correction`): without that the early blocks of a MobileNet came out worse than rounding to nearest.

Deviations: plain squared error instead of the one weighted by the Fisher information; a draw is shared by the samples
of a minibatch; where a relu6 or clamp ends a range its scale only shrinks (beyond it runtimes compute in float); a
block whose output did not come closer to the float network's over all calibration samples is left as it was.

Cost per block: ``iterations`` steps of Adam on ``batch`` samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Context, Facts, Task
from laconic.errors import RecipeError, TrialError
from laconic.fake_quantize import FakeQuantize, attached
from laconic.steps.quantize import rounding
from laconic.steps.quantize.bias_correction import _shift_to_mean
from laconic.steps.quantize.blocks import Block, Values, blocks_of, record
from laconic.steps.quantize.layerwise import bounds_behind, give_biases
from laconic.steps.quantize.observe import calibration_inputs, channel_axis, thinned
from laconic.steps.quantize.rounding import SoftRounding
from laconic.steps.settings import check_types

_LAMBDA = 1.0
_TRAVEL = 10.0  # how far V may go: learning rate times iterations
_SCALE_TRAVEL = 0.1  # of the scale
_DROP = 0.5
_UNBOUNDED = frozenset({"conv", "linear", "matmul", "add", "mean", "relu"})


@dataclass(frozen=True)
class Reconstruct:
    """Learn the rounding of quantized weights, block by block, in ``iterations`` steps on ``batch`` samples each."""

    iterations: int = 200
    batch: int = 8
    drop: bool = True

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_types(self)
        if self.iterations < 1 or self.batch < 1:
            raise RecipeError("a setting of Reconstruct out of range", got=self, wanted="whole numbers from 1")

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        layers = rounding.rounded_layers(model, "Reconstruct")
        give_biases(layers)
        model.eval()
        network = _Network(model, layers, calibration_inputs(task), self.batch)
        generator = torch.Generator().manual_seed(context.seed)
        left: list[float] = []
        names: list[list[str]] = []
        exact = network.inputs
        coarse = {name: network.round(name, x) for name, x in exact.items()}
        for i, block in enumerate(network.blocks):
            context.progress(f"reconstructing {', '.join(block.layers) or 'the end'}", i / len(network.blocks))
            exact, entered = network.run(block, exact, network.exact), exact
            if block.layers:
                learner = _Learner(network, block, self.iterations, self.drop, generator)
                left.append(learner.learn(entered, coarse, exact))
                names.append(list(block.layers))
            coarse = network.run(block, coarse, network.current(block), network.round)
        return model, {"blocks": names, "error_left": left}

    def restore(self, model: Any, facts: Facts) -> Any:
        give_biases(rounding.rounded_layers(model, "Reconstruct"))
        return model


class _Network:
    """The quantized model and its float twin, in blocks that run on ``batch`` samples."""

    def __init__(self, model: nn.Module, layers: dict[str, surgery.Layer], inputs: Values, batch: int) -> None:
        self.layers, self.inputs = layers, {f"input/{name}": x for name, x in inputs.items()}
        self.samples = len(next(iter(inputs.values())))
        self.batch = min(batch, self.samples)
        twin = rounding.float_network(model)
        floats = surgery.weighted_layers(twin)
        example = {name: x[: self.batch].clone() for name, x in inputs.items()}
        self.graph = surgery.trace(twin, example)
        self.bounds = bounds_behind(self.graph, layers)
        operations = record(twin, example, {name: floats[name] for name in layers})
        grouped = frozenset(n for n, layer in layers.items() if getattr(layer, "groups", 1) > 1)
        self.blocks = blocks_of(operations, self.graph.inputs, self.graph.outputs, grouped)
        self.exact = {f"{n}.{part}": getattr(floats[n], part).detach() for n in layers for part in ("weight", "bias")}
        self.model, self.quantizers = model, attached(model)

    def current(self, block: Block) -> Values:
        """The weights and biases as the quantized model has them now."""
        return {
            f"{name}.{part}": getattr(self.layers[name], part).detach()
            for name in block.layers
            for part in ("weight", "bias")
        }

    def round(self, name: str, value: Tensor) -> Tensor:
        return value if self.quantizers is None else self.quantizers.apply_to(name, value)

    def minibatches(self) -> Iterator[Tensor]:
        """The indices of all samples, in order; the last minibatch is filled up from the start."""
        for start in range(0, self.samples, self.batch):
            yield torch.arange(start, start + self.batch) % self.samples

    @torch.no_grad()
    def run(
        self,
        block: Block,
        values: Values,
        parameters: Values,
        quantize: Callable[[str, Tensor], Tensor] = lambda name, value: value,
    ) -> Values:
        """A block over all samples."""
        parts: dict[str, list[Tensor]] = {name: [] for name in block.gives}
        for some in self.minibatches():
            read = {name: values[name][some] for name in block.reads}
            for name, value in block.run(read, parameters, quantize).items():
                parts[name].append(value)
        return {name: torch.cat(found)[: self.samples] for name, found in parts.items()}

    def seen(
        self,
        block: Block,
        values: Values,
        parameters: Values,
        names: Iterable[str],
        quantize: Callable[[str, Tensor], Tensor] = lambda name, value: value,
    ) -> Values:
        """What the values called ``names`` are while a block runs over all samples, thinned out."""
        found: dict[str, list[Tensor]] = {name: [] for name in names}

        def keep(name: str, value: Tensor) -> Tensor:
            if name in found:
                found[name].append(thinned(value).clone())
            return quantize(name, value)

        self.run(block, values, parameters, keep)
        return {name: torch.cat(parts)[: self.samples] for name, parts in found.items()}

    def error(self, block: Block, values: Values, wanted: Values) -> float:
        """How far the quantized block is from the float one's outputs: the sum of squares, per sample."""
        found = self.run(block, values, self.current(block), self.round)
        total = sum(float((found[name] - wanted[name]).square().sum(dtype=torch.float64)) for name in wanted)
        return total / self.samples


class _Learner:
    """What is learned in one block, and how."""

    def __init__(
        self, network: _Network, block: Block, iterations: int, drop: bool, generator: torch.Generator
    ) -> None:
        self.network, self.block, self.iterations, self.drop = network, block, iterations, drop
        self.generator = generator
        self.soft = {name: SoftRounding.of(network.layers[name]) for name in block.layers}
        self.steps = {q: nn.Parameter(q.scale.clone()) for q in self._own_quantizers()}

    def _own_quantizers(self) -> list[FakeQuantize]:
        """The quantizers whose values are all computed in this block."""
        carried, made = self.network.quantizers, {name for op in self.block.operations for name in op.gives}
        if carried is None:
            return []
        return [
            quantizer
            for shared, quantizer in zip(carried.groups, carried.quantizers, strict=True)
            if isinstance(quantizer, FakeQuantize) and made.issuperset((*shared.active, *shared.passive))
        ]

    def learn(self, entered: Values, coarse: Values, wanted: Values) -> float:
        """Learn from the float network's inputs ``entered``, the quantized one's ``coarse`` and the outputs ``wanted``;
        returns which share of the error is left."""
        for layer in (self.network.layers[name] for name in self.block.layers):
            rounding.write_codes(layer, rounding.quantizer_of(layer).codes(rounding.float_weight(layer)))
        before = self.network.error(self.block, coarse, wanted)
        if not math.isfinite(before):
            raise TrialError(f"values that are not finite behind {self.block.layers[-1]}")
        if before == 0:
            return 1.0
        kept = self._state()
        self._optimize(entered, coarse, wanted, before)
        self._write()
        self._correct_biases(entered, coarse)
        after = self.network.error(self.block, coarse, wanted)
        if after < before:
            return after / before
        for tensor, value in kept:
            tensor.copy_(value)
        for name in self.block.layers:
            layer = self.network.layers[name]
            assert layer.bias is not None
            rounding.write_bias(layer, layer.bias, self.network.exact[f"{name}.bias"], None)
        return 1.0

    def _state(self) -> list[tuple[Tensor, Tensor]]:
        """What learning changes in the model, and how it is now."""
        layers = [self.network.layers[name] for name in self.block.layers]
        tensors = [surgery.parameter_of(layer).detach() for layer in layers] + [
            layer.bias.detach() for layer in layers if layer.bias is not None
        ]
        return [(tensor, tensor.clone()) for tensor in (*tensors, *(q.scale for q in self.steps))]

    @torch.no_grad()
    def _write(self) -> None:
        for name, soft in self.soft.items():
            rounding.write_codes(self.network.layers[name], soft.codes())
        for quantizer, step in self.steps.items():
            quantizer.scale.copy_(step)

    def _correct_biases(self, entered: Values, coarse: Values) -> None:
        """Move the biases, one layer after the other, until the channels' means behind the activation are the float
        network's."""
        net = self.network
        scales = rounding.input_scales(net.model, net.graph)
        keys = {op.key: op.layer for op in self.block.operations if op.layer and op.key in net.bounds}
        wanted = net.seen(self.block, entered, net.exact, keys)
        for key, name in keys.items():
            found = net.seen(self.block, coarse, net.current(self.block), [key], net.round)[key]
            bounds, axis = net.bounds[key], channel_axis(key, found)
            mean = wanted[key].clamp(*bounds).mean([d for d in range(found.dim()) if d != axis])
            shift = _shift_to_mean(found, mean, bounds, axis)
            layer = net.layers[name]
            assert layer.bias is not None
            rounding.write_bias(layer, layer.bias + shift, net.exact[f"{name}.bias"], scales.get(name))

    def _optimize(self, entered: Values, coarse: Values, wanted: Values, before: float) -> None:
        groups = [{"params": [soft.v], "lr": _TRAVEL / self.iterations} for soft in self.soft.values()]
        groups += [
            {"params": [step], "lr": _SCALE_TRAVEL * float(step.detach()) / self.iterations}
            for step in self.steps.values()
        ]
        limits = {step: self._limits(quantizer) for quantizer, step in self.steps.items()}
        optimizer = torch.optim.Adam(groups)
        samples = self.network.samples
        for i in range(self.iterations):
            some = torch.randperm(samples, generator=self.generator)[: self.network.batch]
            read = {name: self._mixed(entered[name][some], coarse[name][some]) for name in self.block.reads}
            parameters = self.network.exact | {f"{name}.weight": soft() for name, soft in self.soft.items()}
            found = self.block.run(read, parameters, self._quantize)
            loss = torch.stack([(found[n] - wanted[n][some]).square().sum() for n in found]).sum() / len(some) / before
            beta = rounding.beta_at(i / self.iterations)
            if beta is not None:
                loss = loss + _LAMBDA * torch.stack([s.undecided(beta) for s in self.soft.values()]).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                for step, (low, high) in limits.items():
                    step.clamp_(low, high)

    def _limits(self, quantizer: FakeQuantize) -> tuple[float, float]:
        """Where a scale may go."""
        carried = self.network.quantizers
        assert carried is not None
        producer, scale = self.network.graph.producer(), float(quantizer.scale)
        active = carried.groups[list(carried.quantizers).index(quantizer)].active
        free = all(producer[name].family in _UNBOUNDED for name in active)
        return scale / 2, scale * 2 if free else scale

    def _quantize(self, name: str, value: Tensor) -> Tensor:
        """A value as it goes on in training: rounded, half of it."""
        carried = self.network.quantizers
        index = None if carried is None else carried.active.get(name)
        if carried is None or index is None:
            return value
        quantizer = carried.quantizers[index]
        assert isinstance(quantizer, FakeQuantize)
        if quantizer not in self.steps:
            return self._mixed(value, quantizer(value))
        rounded: Tensor = _LearnedStep.apply(value, self.steps[quantizer], quantizer)
        return self._mixed(value, rounded)

    def _mixed(self, exact: Tensor, rounded: Tensor) -> Tensor:
        """Each element of one or the other; the same ones in all samples of the minibatch."""
        if not self.drop:
            return rounded
        kept = torch.rand(exact.shape[1:], generator=self.generator) < _DROP
        return torch.where(kept, exact, rounded)


class _LearnedStep(torch.autograd.Function):
    """Rounding with LSQ's gradient for the scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, q: FakeQuantize) -> Tensor:
        rounded, inside = torch.ops.aten.fake_quantize_per_tensor_affine_cachemask(
            x, float(scale), int(q.zero_point), q.qmin, q.qmax
        )
        # what the scale moves: inside (x^ - x) / s, at the ends x^ / s, the levels n or p
        ctx.save_for_backward(inside, rounded - x * inside, scale)
        return rounded  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        inside, moved, scale = ctx.saved_tensors
        return grads[0] * inside, (torch.sum(grads[0] * moved) / scale).reshape(scale.shape), None
