"""Training on after a step that hurt, towards the labels and towards the original model (:mod:`.fit`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from laconic.core import Context, Facts, Task
from laconic.errors import RecipeError
from laconic.steps.settings import check_types
from laconic.steps.train.fit import Schedule, fit


@dataclass(frozen=True)
class FineTune:
    """``epochs`` over the train split with AdamW at ``lr``; ``distill`` is the share of the distillation loss.

    Everything that the model carries is trained through: pruned layers, weight and activation quantizers.
    """

    epochs: float = 3.0
    lr: float = 1e-3
    batch: int = 64
    weight_decay: float = 1e-4
    distill: float = 0.5
    temperature: float = 4.0

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_types(self)
        if self.epochs < 0 or self.lr <= 0 or self.batch < 1 or self.weight_decay < 0 or self.temperature <= 0:
            raise RecipeError("a setting of FineTune out of range", got=self, wanted="positive numbers")
        if not 0 <= self.distill <= 1:
            raise RecipeError("distill of FineTune", got=self.distill, wanted="0 (labels only) to 1 (teacher only)")

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        if not task.trainable:
            raise RecipeError("FineTune needs training data", fix="run without --no-train, or leave FineTune out")
        if self.epochs == 0:
            return model, {"steps": 0}
        schedule = Schedule(self.epochs, self.lr, self.batch, self.weight_decay, self.distill, self.temperature)
        teacher = context.reference if self.distill > 0 or task.loss is None else None
        facts = fit(
            model, task.train, task.loss, teacher, schedule, context.seed, context.progress, augment=task.augment
        )
        return model, facts

    def restore(self, model: Any, facts: Facts) -> Any:
        return model
