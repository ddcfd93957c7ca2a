"""What the trained low-bit formats share: their settings, their training, and which layers they take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic import surgery
from laconic.core import Context, Facts, Task
from laconic.errors import RecipeError
from laconic.steps.settings import check_types
from laconic.steps.train.fit import Schedule, fit

_WEIGHT_DECAY = 1e-4
_TEMPERATURE = 4.0
_WEIGHTED = ("conv", "linear", "matmul", "recurrent")


class Trained(Protocol):
    """A step with the settings of a training."""

    @property
    def epochs(self) -> float: ...
    @property
    def lr(self) -> float: ...
    @property
    def batch(self) -> int: ...
    @property
    def distill(self) -> float: ...


def check_training(step: Trained) -> None:
    """Refuse settings of a wrong type or out of range."""
    check_types(step)
    name = type(step).__name__
    if step.epochs < 0 or step.lr <= 0 or step.batch < 1:
        raise RecipeError(f"a setting of {name} out of range", got=step, wanted="positive numbers")
    if not 0 <= step.distill <= 1:
        raise RecipeError(f"distill of {name}", got=step.distill, wanted="0 (labels only) to 1 (teacher only)")


def check_data(step: Trained, task: Task) -> None:
    """Refuse to train where there is nothing to train on."""
    if step.epochs and not task.trainable:
        name = type(step).__name__
        raise RecipeError(f"{name} needs training data", fix=f"run without --no-train, or leave {name} out")


def train(step: Trained, model: nn.Module, task: Task, context: Context, share: float = 1.0) -> Facts:
    """Train everything that the model carries, as the step's settings say, for a ``share`` of its epochs; what the
    trainer says of it."""
    if step.epochs * share == 0:
        return {"steps": 0}
    schedule = Schedule(step.epochs * share, step.lr, step.batch, _WEIGHT_DECAY, step.distill, _TEMPERATURE)
    teacher = context.reference if step.distill > 0 or task.loss is None else None
    return fit(model, task.train, task.loss, teacher, schedule, context.seed, context.progress, augment=task.augment)


def layers_to_change(
    step: object, model: nn.Module, graph: surgery.Graph, keep: tuple[str, ...], keep_ends: bool
) -> dict[str, surgery.Layer]:
    """The convolutions and linear layers that run, those in recurrent modules among them, by name, without those that
    match ``keep`` and, with ``keep_ends``, without the first and the last: the layers (or recurrent modules) that read
    the model's inputs or give its outputs.

    Raises :class:`RecipeError` where the weight of one has another form already.
    """
    called = {call.module for call in graph.calls if call.family in ("conv", "linear")}
    recurrent = {call.module for call in graph.calls if call.family == "recurrent"}
    ends = _input_layers(graph) | surgery.output_layers(graph) if keep_ends else set()
    chosen = {}
    for name, layer in surgery.weighted_layers(model).items():
        whole = (
            name.rpartition(".")[0] if name not in called else name
        )  # a recurrent module reads its children's weights
        runs = name in called or whole in recurrent
        if runs and whole not in ends and not surgery.matches(name, keep):
            chosen[name] = layer
    for name, layer in chosen.items():
        if parametrize.is_parametrized(layer, "weight"):
            name_of_step = type(step).__name__
            raise RecipeError(
                f"{name_of_step} of {name}, whose weight has another form already", fix="keep one of them"
            )
    return chosen


def _input_layers(graph: surgery.Graph) -> set[str]:
    """The weighted layers that read the model's inputs: nothing weighted comes before them."""
    raw, found = set(graph.inputs), set()
    for call in graph.calls:
        if call.family in _WEIGHTED:
            found.update([call.module] if call.inputs[0] in raw else [])
        elif raw.issuperset(call.inputs):
            raw.update(call.outputs)
    return found


def example_of(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Two of the samples: enough to see which calls a model makes."""
    return {name: x[:2] for name, x in inputs.items()}


def per_channel(vector: Tensor, x: Tensor, axis: int) -> Tensor:
    """``vector`` shaped so that it broadcasts along ``axis`` of ``x``."""
    return vector.reshape([-1 if d == axis % x.dim() else 1 for d in range(x.dim())])


def computed_in_float(bits: int) -> dict[str, Any]:
    """What facts say of weights for which the runtimes have no kernel: kept in few bits, multiplied in float."""
    return {"stored_bits": bits, "computed": "float32"}
