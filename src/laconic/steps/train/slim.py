"""Network Slimming: training that makes the gains of batch norms sparse, before channels are pruned by them.

Liu et al. 2017 (arXiv 1708.06519), eq. 1: L + strength * sum |gamma| over the gains of all batch norms. As there, by
its subgradient strength * sign(gamma), which is added to the gradient of gamma. Channels whose gain is near zero are
then what ``PruneChannels`` with the criterion bn_scale, over all layers together, takes first.

Deviation: AdamW scales this pull as it scales any gradient, where the paper's SGD does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from laconic.core import Context, Facts, Task
from laconic.errors import RecipeError
from laconic.steps.quantize.trained import check_data, check_training, train


@dataclass(frozen=True)
class Slim:
    """Train for ``epochs`` with AdamW at ``lr`` and pull the gains of batch norms to zero with ``strength``;
    ``distill`` is the share of the distillation loss. A network without batch norms is left as it is."""

    strength: float = 1e-3
    epochs: float = 3.0
    lr: float = 1e-3
    batch: int = 64
    distill: float = 0.0

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_training(self)
        if self.strength < 0:
            raise RecipeError("strength of Slim", got=self.strength, wanted="0 or more")

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        check_data(self, task)
        gains = gains_of(model)
        if not gains:
            return model, {"norms": 0, "steps": 0}
        hooks = [gain.register_hook(_pull(gain, self.strength)) for gain in gains]  # type: ignore[no-untyped-call]
        try:
            facts = train(self, model, task, context)
        finally:
            for hook in hooks:
                hook.remove()
        return model, {"norms": len(gains), **facts}

    def restore(self, model: Any, facts: Facts) -> Any:
        return model


def gains_of(model: nn.Module) -> list[nn.Parameter]:
    """The gains of the batch norms that have some."""
    kind = nn.modules.batchnorm._BatchNorm
    return [m.weight for m in model.modules() if isinstance(m, kind) and m.weight is not None]


def _pull(gain: nn.Parameter, strength: float) -> Any:
    def pulled(gradient: Tensor) -> Tensor:
        return gradient + strength * torch.sign(gain.detach())

    return pulled
