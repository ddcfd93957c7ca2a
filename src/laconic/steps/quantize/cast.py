"""Computing in a shorter float: the weights stay as they are, the runtime is told to multiply in bf16.

bf16 keeps float32's exponent and 8 bits of significand (Kalamkar et al. 2019, arXiv 1905.12322). On processors with
bf16 instructions it is close to lossless and about twice as fast; the file does not shrink.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from laconic.core import Context, Facts, Task
from laconic.errors import RecipeError
from laconic.steps.settings import check_types


@dataclass(frozen=True)
class Cast:
    """Compute the float layers in ``precision``; the target must offer it."""

    precision: Literal["f32", "bf16"] = "bf16"

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_types(self)

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        if self.precision not in context.traits.precisions:
            offered = ", ".join(context.traits.precisions)
            raise RecipeError("Cast to a precision that the target lacks", got=self.precision, wanted=offered)
        return self.restore(model, {}), {}

    def restore(self, model: Any, facts: Facts) -> Any:
        model.precision = self.precision  # read by runtimes when they write the file
        return model
