"""How much a recipe, or one layer of it, moves a network's outputs: measured in torch, on calibration samples.

The damage is ||y - y'||^2 / ||y - mean y||^2 on some of the calibration samples, which the recipe, calibrated on the
others, has not seen: codes that were chosen fit what they were chosen from too well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from laconic import surgery
from laconic.core import Context, JsonObject, Recipe, Task
from laconic.errors import LaconicError
from laconic.fake_quantize import float_values
from laconic.profile import profile
from laconic.steps import STEPS

_SAMPLES = 96  # two thirds to calibrate on, a third to measure on
_FEWEST_SAMPLES, _MACS = 48, 10**10  # of all samples together


class Probes:
    """Of one model: ``calibrated`` samples calibrate, those from there to ``end`` measure; of a large network fewer."""

    def __init__(self, model: nn.Module, task: Task, context: Context) -> None:
        self.model, self.context = model, context
        one = {name: torch.as_tensor(x) for name, x in task.train.read([0]).inputs.items()}
        bearable = max(_FEWEST_SAMPLES, round(_MACS / max(profile(model, one).macs, 1)))
        end = min(_SAMPLES, bearable, task.calibration, len(task.train))
        calibrated = end * 2 // 3
        self.task = replace(task, calibration=max(1, calibrated))
        read = task.train.read(range(calibrated, end)).inputs
        self.inputs = {name: torch.as_tensor(x) for name, x in read.items()}
        self.wanted = self._outputs(model)

    def damage(self, rows: list[JsonObject]) -> float:
        """The damage of a recipe."""
        return self._damage(self._applied(rows))

    def exchange(
        self, recipes: Mapping[str, list[JsonObject]], base: str
    ) -> tuple[dict[str, dict[str, float]], str | None]:
        """How far the outputs of the network of ``recipes[base]`` move, in the unit of a damage, with one layer at a
        time taken from that of another recipe: by layer and by the recipe's name, those missing that cannot be applied;
        and why one could not.

        Activations are in float: where they are rounded, any change in front of them rounds them all anew, which looked
        like a damage of early layers.
        """
        models, problem = dict[str, nn.Module](), None
        for i, (name, rows) in enumerate(recipes.items()):
            self.context.progress("measuring sensitivities", i / len(recipes) / 2)
            try:
                models[name] = self._applied(rows)
                float_values(models[name])
            except LaconicError as error:
                problem = str(error)
        return self._exchanged(models, base) if base in models else {}, problem

    def _exchanged(self, models: Mapping[str, nn.Module], base: str) -> dict[str, dict[str, float]]:
        network, as_it_is = models[base], self._outputs(models[base])
        layers = list(surgery.weighted_layers(network))
        found: dict[str, dict[str, float]] = {}
        for i, layer in enumerate(layers):
            self.context.progress(f"exchanging {layer}", 0.5 + i / len(layers) / 2)
            own, found[layer] = network.get_submodule(layer), {base: 0.0}
            for name, other in models.items():
                if name != base:
                    surgery.set_module(network, layer, other.get_submodule(layer))
                    found[layer][name] = self._relative(self._outputs(network) - as_it_is)
            surgery.set_module(network, layer, own)
        return found

    def _applied(self, rows: list[JsonObject]) -> nn.Module:
        model: nn.Module = Recipe.parse(rows, STEPS).apply(self.model, self.task, self.context)[0]
        return model.eval()

    def _damage(self, model: nn.Module) -> float:
        return self._relative(self._outputs(model) - self.wanted)

    def _relative(self, error: torch.Tensor) -> float:
        spread = (self.wanted - self.wanted.mean(0)).square().sum()
        return float(error.square().sum() / spread.clamp_min(1e-30))

    @torch.no_grad()
    def _outputs(self, model: nn.Module) -> torch.Tensor:
        return next(iter(surgery.call(model, self.inputs).values())).double()
