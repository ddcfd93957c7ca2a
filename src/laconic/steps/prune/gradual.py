"""Pruning of weights in rounds, with training in between: what is left has time to take over.

The density falls as in Zhu and Gupta 2017 (arXiv 1710.01878, eq. 1): after round t of T it is

    d_t = d_T + (1 - d_T) (1 - t / T)^3,

so that most goes while much is left, in each layer towards its own d_T. Each round sets the masks anew
(:mod:`.weights`; what is zero stays zero) and trains for an equal share of the epochs, with a warm-up and a cosine of
its own.

With ``rewind`` each round begins, but for its masks, from the weights in that file, as the network was early in its
training (Frankle et al. 2019, arXiv 1903.01611; from the start itself: Frankle and Carbin 2018, arXiv 1803.03635).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from laconic.core import Context, Facts, Task
from laconic.errors import RecipeError
from laconic.steps.prune.weights import PruneWeights, WeightCriterion
from laconic.steps.quantize.trained import check_data, check_training, train


@dataclass(frozen=True)
class PruneGradually:
    """Prune the weights down to ``density`` in ``rounds``, and train for ``epochs`` in all with AdamW at ``lr``.

    ``granularity``, ``criterion``, ``scope``, ``layers`` (densities, in the end, by globs) and ``exclude`` are those of
    PruneWeights. ``rewind``: a safetensors file with the weights that each round starts from; none: it goes on with
    those it has.
    """

    density: float = 0.2
    granularity: str = "weight"
    criterion: WeightCriterion = "l2"
    scope: Literal["layer", "global"] = "layer"
    layers: Mapping[str, float] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    rounds: int = 4
    rewind: str = ""
    epochs: float = 4.0
    lr: float = 1e-3
    batch: int = 64
    distill: float = 0.5

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_training(self)
        if self.rounds < 1:
            raise RecipeError("rounds of PruneGradually", got=self.rounds, wanted="1 or more")
        self._at(self.rounds)  # refuses what PruneWeights refuses

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        check_data(self, task)
        early, source = _read(self.rewind, model) if self.rewind else ({}, None)
        facts: Facts = {"layers": {}, "left_whole": {}}
        losses = []
        for t in range(1, self.rounds + 1):
            told = replace(context, seed=context.seed + t, progress=partial(self._say, context, t))
            model, facts = self._at(t)(model, task, told)
            _rewind(model, early)
            each = replace(self, epochs=self.epochs / self.rounds)
            losses.append(train(each, model, task, told).get("last_loss"))
        return model, {**facts, "losses": losses, "rewound_to": source}

    def restore(self, model: Any, facts: Facts) -> Any:
        return self._at(self.rounds).restore(model, facts)

    def _at(self, t: int) -> PruneWeights:
        """The pruning of round ``t``."""
        still = (1 - t / self.rounds) ** 3
        density = self.density + (1 - self.density) * still
        layers = {glob: last + (1 - last) * still for glob, last in self.layers.items()}
        return PruneWeights(density, self.granularity, self.criterion, self.scope, layers, self.exclude)

    def _say(self, context: Context, t: int, text: str, done: float) -> None:
        context.progress(f"round {t} of {self.rounds}: {text}", (t - 1 + done) / self.rounds)


def _read(path: str, model: nn.Module) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file that fit the model, and the file's hash; :class:`RecipeError` where one is missing."""
    try:
        content = Path(path).read_bytes()
        found = safetensors.torch.load(content)
    except (OSError, safetensors.SafetensorError) as error:
        wanted = "a readable safetensors file"
        raise RecipeError("rewind of PruneGradually", got=f"{path} ({error})", wanted=wanted) from error
    for name, value in model.state_dict().items():
        plain = name.replace("parametrizations.weight.original", "weight")
        if ".parametrizations." in plain:  # a mask of this step or of one before
            continue
        if plain not in found or found[plain].shape != value.shape:
            wanted = f"a file with {plain} {tuple(value.shape)}"
            raise RecipeError("rewind of PruneGradually", got=path, wanted=wanted)
    return found, hashlib.sha256(content).hexdigest()[:16]


@torch.no_grad()
def _rewind(model: nn.Module, early: dict[str, Tensor]) -> None:
    """Put the early numbers back, where there are any; masks stay."""
    for name, value in model.state_dict().items():
        plain = name.replace("parametrizations.weight.original", "weight")
        if plain in early:
            value.copy_(early[plain])
