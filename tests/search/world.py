"""A small world in which every recipe's size, speed and drop are known: what a search is told instead of measuring."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from laconic.core import Measurement, Recipe, Target, Trial, Width
from laconic.goal import Goal
from laconic.search.choose import Judge
from laconic.search.costs import counted
from laconic.search.policy import _PRICES
from laconic.search.space import BLOCKS, HEADS, Allocation, Group, LayerCost, Space
from laconic.search.tools import BudgetSpentError, Tools
from laconic.steps import STEPS

STORED = (2, 3, 4, 5, 6, 8)
PRODUCT = "SpatiallySeparable"
_ALONE = ("QuantizeWeights", "Cluster")
_PRICED = {"EPR": 0.05, "RateDistortion": 0.08}  # of the size is left at the first price
BYTES, MACS, LATENCY_MS = 1_000_000.0, 5_000_000.0, 2.0


def made(  # noqa: PLR0913 - the numbers of a trial
    *steps: object,
    speedup: float | None = 1.5,
    size: float = 0.5,
    macs: float = 1.0,
    drop: float | None = 0.0,
    bound: float | None = None,
    p: float = 0.01,
    low: float | None = None,
    error: str | None = None,
    rejected: str | None = None,
) -> Trial:
    """A trial with these numbers, sizes and MACs as fractions of the original's; None: not measured."""
    recipe = Recipe(steps)  # type: ignore[arg-type]
    sizes = dict.fromkeys(("file_bytes", "packed_bytes"), size * BYTES)
    values: dict[str, float] = {**sizes, "macs": macs * MACS, "score": 0.98 - (drop or 0.0)}
    if speedup is not None:
        values |= {"speedup": speedup, "latency": LATENCY_MS / speedup, "baseline_latency": LATENCY_MS}
    if drop is not None:
        values |= {"drop": drop, "expected_bound": drop + 0.001 if bound is None else bound, "p_search": p}
    found = {name: Measurement(name, "", v, v, v, 100, "measured") for name, v in values.items()}
    if drop is not None and low is not None:
        found["drop"] = Measurement("drop", "", drop, low, drop + 0.01, 100, "measured")
    measurements = {} if error else found
    return Trial(recipe.key, recipe, Target("onnxruntime"), (), measurements, rejected=rejected, error=error)


def original(speedup: float = 1.0) -> Trial:
    return made(speedup=speedup, size=1.0, drop=0.0, bound=0.0, p=0.0)


def judge(minimize: str = "latency", max_drop: float = 0.02, **limits: str) -> Judge:
    return Judge(Goal.parse(minimize, **limits), max_drop, original())


@dataclass
class World:
    """Groups of channels that hurt by ``harm[group]`` times the square of what is removed of them, and layers that hurt
    by ``integer_harm[layer]`` in integers. Integers make the file a quarter and divide the time by ``integer_speed``.

    ``block_harm[layer]``: what the absence of the block around a layer hurts; ``head_harm[layer]``: what the heads that
    it gives, four, hurt, times the square of what goes of them.
    ``product_harm[layer]``: what a layer hurts, times the square of the share of its MACs that goes, as a product.
    ``narrow_harm[layer]``: what a layer hurts more in 4 bits, rounded to the nearest, a fourth of that with each bit
    more; GPTQ mends half of it, and what is learned nine tenths; bits are stored as they are. ``rounded_harm`` and
    ``shared_harm``: what 4 bits of weights alone hurt, as integers or as shared values; ``priced_harm`` and
    ``bought_harm``: what EPR and RateDistortion hurt at the price that they are first tried at, and twice that at twice
    the price; EPR makes the smaller file. ``fails``: whether a recipe's trial is an
    error. ``ledger`` remembers every trial and probe; ``asked`` every recipe in the order in which
    it was asked for.
    """

    harm: Mapping[str, float] = field(default_factory=dict)
    integer_harm: Mapping[str, float] = field(default_factory=dict)
    healed: float = 0.0  # the share of the damage that training mends
    computed: float = 0.0  # the share of ``integer_harm`` that GPTQ mends
    integer: bool = True
    integer_speed: float = 2.0
    precisions: tuple[str, ...] = ("f32",)
    trainable: bool = False
    minimize: str = "latency"
    max_drop: float = 0.02
    budget: int = 10_000
    narrow_harm: Mapping[str, float] = field(default_factory=dict)
    product_harm: Mapping[str, float] = field(default_factory=dict)
    block_harm: Mapping[str, float] = field(default_factory=dict)
    head_harm: Mapping[str, float] = field(default_factory=dict)
    rounded_harm: float = 9.0
    shared_harm: float = 9.0
    priced_harm: float = 9.0
    bought_harm: float = 9.0
    fails: Callable[[Recipe], str | None] = lambda recipe: None
    early: bool = False  # a clear drop ends the scoring early
    ledger: dict[str, Trial] = field(default_factory=dict)
    probes: dict[str, float | None] = field(default_factory=dict)
    asked: list[Recipe] = field(default_factory=list)

    @property
    def space(self) -> Space:
        names = list(self.harm)
        layers = [
            LayerCost(n, "conv", 1e6 * (i + 1), 1e4 * (i + 1), n, reads, PRODUCT if n in self.product_harm else None)
            for i, n in enumerate(names)
            for reads in [{names[i - 1]: 1.0} if i else {}]
        ]
        layers += [LayerCost(n, "linear", 3e6, 3e4, f"heads {n}", {}) for n in self.head_harm]
        layers = [replace(one, inside=f"block {one.name}") if one.name in self.block_harm else one for one in layers]
        groups = dict.fromkeys(names, Group(32))
        groups |= {f"heads {n}": Group(4, HEADS, n) for n in self.head_harm}
        groups |= {f"block {n}": Group(1, BLOCKS, n) for n in self.block_harm}
        layers.append(LayerCost("head", "linear", 1e4, 1e4, None, {names[-1]: 1.0} if names else {}))
        stored = {bits: Width(float(bits)) for bits in STORED}
        return Space(groups, layers, self.integer, self.precisions, self.trainable, 1000, stored)

    @property
    def goal(self) -> Goal:
        return Goal.parse(self.minimize, budget=f"{self.budget}trials")

    @property
    def judge(self) -> Judge:
        return Judge(self.goal, self.max_drop, original())

    @property
    def tools(self) -> Tools:
        return Tools(STEPS, self.evaluate, self.probe, self.exchange, self.layer_times, lambda recipe: 1, lambda: 1e-3)

    def evaluate(self, recipe: Recipe) -> Trial:
        self.asked.append(recipe)
        if recipe.key not in self.ledger:
            if recipe.steps and sum(bool(t.recipe.steps) for t in self.ledger.values()) >= self.budget:
                raise BudgetSpentError
            self.ledger[recipe.key] = self.truth(recipe)
        return self.ledger[recipe.key]

    def probe(self, recipe: Recipe) -> float | None:
        if recipe.key not in self.probes:
            self.probes[recipe.key] = None if self.fails(recipe) else self.drop(recipe)
        return self.probes[recipe.key]

    def exchange(self, recipes: Mapping[int, Recipe], base: int) -> dict[str, dict[int, float]]:
        found: dict[str, dict[int, float]] = {}
        whole = self.probe(recipes[base])
        for layer in self.space.layers:
            for bits in recipes:
                step, *behind = recipes[base].steps
                changed = Recipe((replace(step, layers={layer.name: bits}), *behind))  # type: ignore[type-var]
                damage = self.probe(changed)
                if damage is not None and whole is not None:
                    found.setdefault(layer.name, {})[bits] = damage - whole
        return found

    def layer_times(self, recipe: Recipe) -> dict[str, float]:
        """By the count that the search has too, so that there is nothing to learn from them."""
        integer = any(type(step).__name__ == "Quantize" for step in recipe.steps)
        costs = counted(self.space, "latency").curves
        keeps, forms = self.keeps(recipe), self.forms(recipe)
        return {
            layer.name: 1e-7
            * costs[layer.name][1.0]
            * layer.share(keeps)
            * (1 - forms.get(layer.name, 0.0))
            / (self.integer_speed if integer else 1.0)
            for layer in self.space.layers
        }

    def truth(self, recipe: Recipe) -> Trial:
        """The trial that measuring would give."""
        reason = self.fails(recipe)
        if reason:
            return made(*recipe.steps, error=reason)
        drop, names = self.drop(recipe), {type(step).__name__ for step in recipe.steps}
        speed, size, macs = 1 / self.cost(recipe, "latency"), self.cost(recipe, "size"), self.cost(recipe, "macs")
        if "Quantize" in names:
            share = self.integer_share(recipe)
            speed /= 1 - share + share / self.integer_speed
            size *= 1 - 0.75 * share - self.narrow_share(recipe)
        size *= math.prod(step.bits / 32 for step in recipe.steps if type(step).__name__ in _ALONE)  # type: ignore[attr-defined]
        for step in recipe.steps:
            if type(step).__name__ in _PRICED:
                size *= _PRICED[type(step).__name__] / self.price(step)
        if "Cast" in names:
            speed *= 1.5
        if self.early and drop > 3 * self.max_drop:
            return made(*recipe.steps, speedup=None, size=size, macs=macs, drop=None, rejected="its drop was clear")
        p = min(1.0, 0.05 * 2 ** min(5.0, (drop - self.max_drop) / 0.005))
        return made(*recipe.steps, speedup=speed, size=size, macs=macs, drop=drop, bound=drop, p=p)

    def cost(self, recipe: Recipe, minimize: Literal["latency", "size", "macs"]) -> float:
        """What is left of the original's cost by its structure alone, by the same count that the search has."""
        return counted(self.space, minimize).of(Allocation(self.keeps(recipe), self.forms(recipe)))

    def drop(self, recipe: Recipe) -> float:
        found, narrow = 0.0, 0.0
        for step in recipe.steps:
            name = type(step).__name__
            if name == "PruneChannels":
                found += sum(harm * (1 - self.keeps(recipe)[g]) ** 2 for g, harm in self.harm.items())
            if name == HEADS:
                found += sum(h * (1 - self.keeps(recipe)[f"heads {n}"]) ** 2 for n, h in self.head_harm.items())
            if name == BLOCKS:
                found += sum(self.block_harm[block] for block in step.blocks)  # type: ignore[attr-defined]
            if name == PRODUCT:
                found += sum(self.product_harm[n] * form**2 for n, form in self.forms(recipe).items())
            if name == "Quantize":
                found += sum(h for layer, h in self.integer_harm.items() if layer not in step.exclude)  # type: ignore[attr-defined]
                narrow = sum(self.narrow_harm.get(layer, 0.0) * 4 ** (4 - b) for layer, b in self.narrow(step).items())
            if name in _PRICED:
                narrow += {"EPR": self.priced_harm}.get(name, self.bought_harm) * self.price(step)
            if name in _ALONE:
                narrow += {"Cluster": self.shared_harm}.get(name, self.rounded_harm) * 4 ** (4 - step.bits)  # type: ignore[attr-defined]
            narrow *= {"GPTQ": 0.5, "LSQ": 0.1, "Reconstruct": 0.1}.get(name, 1.0)
            if name == "GPTQ" and not narrow:
                found *= 1 - self.computed
            if name == "FineTune":
                found *= 1 - self.healed
        return found + narrow

    def price(self, step: object) -> float:
        """In the price that such a step is first tried at."""
        settings: Any = step
        first = _PRICES[type(step).__name__]
        return float(settings.price) * sum(layer.params for layer in self.space.layers) / 8000 / first

    def narrow(self, step: object) -> dict[str, int]:
        """The layers that a Quantize puts into fewer bits than 8, with these."""
        settings: Any = step
        bits = {n.name: settings.layers.get(n.name, settings.bits) for n in self.space.layers}
        return {name: b for name, b in bits.items() if b < 8 and name not in settings.exclude}

    def narrow_share(self, recipe: Recipe) -> float:
        """What fewer bits than 8 save of the original's."""
        narrow = next(self.narrow(step) for step in recipe.steps if type(step).__name__ == "Quantize")
        params = {layer.name: layer.params for layer in self.space.layers}
        return sum(params[name] * (8 - bits) / 32 for name, bits in narrow.items()) / sum(params.values())

    def integer_share(self, recipe: Recipe) -> float:
        """The share of the layers that a recipe puts into integers."""
        names = [layer.name for layer in self.space.layers]
        excluded = next(s.exclude for s in recipe.steps if type(s).__name__ == "Quantize")  # type: ignore[attr-defined]
        return 1 - len([n for n in names if n in excluded]) / len(names)

    def keeps(self, recipe: Recipe) -> dict[str, float]:
        found = dict.fromkeys(self.harm, 1.0) | {f"heads {n}": 1.0 for n in self.head_harm}
        for step in recipe.steps:
            settings: Any = step
            if type(step).__name__ == "PruneChannels":
                ratios = dict.fromkeys(self.harm, settings.ratio) | settings.layers
                found |= {name: 1 - ratio for name, ratio in ratios.items()}
            if type(step).__name__ == HEADS:
                found |= {f"heads {name}": 1 - ratio for name, ratio in settings.layers.items()}
            if type(step).__name__ == BLOCKS:
                found |= {f"block {name}": 0.0 for name in settings.blocks}
        return found

    def forms(self, recipe: Recipe) -> dict[str, float]:
        steps = [step for step in recipe.steps if type(step).__name__ == PRODUCT]
        return {name: ratio for step in steps for name, ratio in step.layers.items()}  # type: ignore[attr-defined]
