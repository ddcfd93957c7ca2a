"""Which recipe to try next: a plain story, told again from the beginning at every resume.

The policy sees nothing but what ``evaluate`` and ``probe`` return, and draws no random numbers. Finished rows of the
ledger are returned at once, so the same ledger leads to the same next recipe: the policy is a pure function of ledger
and seed. ``evaluate`` raises :class:`BudgetSpentError` when the budget has ended, wherever the story then is.

The story: integers first (a valid package within the first minute), in several forms, the *tails* of later recipes,
where the size counts also with fewer bits for each layer than 8, as few as the floor allows; then channels, heads and
blocks are removed and layers written as products until the floor is missed (:mod:`.structure`), with every tail, since
a layer that was worth its integers may not be when it has fewer channels; then single notches around the best; then the
same with twice the training, for as long as the budget lasts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from laconic.core import Recipe, Step, Trial
from laconic.goal import Goal
from laconic.search.choose import Judge
from laconic.search.costs import counted, filled_up
from laconic.search.knapsack import Choices, least_damage
from laconic.search.precision import FLOAT, exchanged, near, sensitivities, sizes, with_bits
from laconic.search.space import BLOCKS, CHANNELS, FACTORED, HEADS, Allocation, Space
from laconic.search.structure import Structure
from laconic.search.tools import Tail, Tools

RANGES = ("mse", "percentile", "minmax")
_NARROW = 4  # bits: with so many, in all layers, the search for fewer begins
_PRICES = {"RateDistortion": 0.006, "EPR": 0.1}
"""Of all weights at one bit each, in units of the loss: where the search for the highest price begins."""
_DOUBLINGS = 3
_DEARER = 1.2  # by so much a price rises at a notch
_BISECTIONS = 4
_TAILS = 4  # that every cut of the structure is tried with at first
EFFORTS = (1.0, 2.0, 4.0)
_TRIALS_PER_BUDGET = 12
_TRAINING_S = 30.0  # a trial's training where the budget is counted in trials
_LONGEST_EPOCHS = 20.0
_ROUNDED = 1e-4  # what ratios in recipes are rounded by, and more
_TEACHER = 0.25  # of the price of training the original: one pass of four, a backward pass costing two


class Policy:
    """One search. ``run`` returns when there is nothing left to try; ``trials`` are all that were made, in order."""

    def __init__(self, space: Space, goal: Goal, judge: Judge, tools: Tools) -> None:
        self.space, self.goal, self.judge, self.tools = space, goal, judge, tools
        self.trials: list[Trial] = []
        self.alignment = 1  # of the target's kernels, once it is known

    def run(self) -> None:
        """Tell the story to its end, or until the budget has ended."""
        self._try()
        tails = self._tails()
        if not self.space.structural:
            self._weights_alone()
            return self._refine()
        made = (self.space, self.goal, self.judge, self.tools, self._try, self._epochs)
        structure, level = Structure(*made, tail=tails[0]), 1.0
        for effort in EFFORTS if self.space.trainable else EFFORTS[:1]:
            level = structure.descend(tails, level, effort)
            self.alignment = structure.costs.alignment
            if effort == EFFORTS[0]:
                self._weights_alone()
            self._refine()
        return None

    # --------------------------------------------------------------------------------------------------------- trying

    def _try(self, *steps: Step) -> Trial:
        trial = self.tools.evaluate(Recipe(steps))
        self.trials.append(trial)
        return trial

    @property
    def best(self) -> Trial | None:
        """The best trial so far that passes on search."""
        return self.judge.best([t for t in self.trials if self.judge.passes(t)])

    def _step(self, name: str, **settings: object) -> Step:
        return self.tools.steps[name](**settings)

    # ------------------------------------------------------------------------------------- integers and shorter floats

    def _tails(self) -> list[Tail]:
        """The ends of recipes that keep the original above the floor, the few best, the best first, and the empty
        one."""
        ranges = RANGES if self.space.integer else ()
        formed = [self._tried(self._step("Quantize", ranges=name)) for name in ranges]
        floats = [self._tried(self._step("Cast", precision=name)) for name in self.space.precisions[1:]]
        shorter = self.judge.best([trial for trial, _ in floats if self.judge.passes(trial)])
        tried = self._quantized(formed, shorter.recipe.steps if shorter else ())
        if self.goal.minimize == "size":
            tried += self._narrowed([tail for trial, tail in tried if self.judge.holds(trial)])
            tried += self._priced()
        tried += floats
        holding = [(trial, tail) for trial, tail in tried if self.judge.holds(trial)]
        ranked: list[Tail] = []
        while holding and len(ranked) < _TAILS:
            best = self.judge.best([trial for trial, _ in holding if self.judge.passes(trial)]) or holding[0][0]
            ranked += [tail for trial, tail in holding if trial is best]
            holding = [pair for pair in holding if pair[0] is not best]
        return [*ranked, ()]

    def _tried(self, *tail: Step) -> tuple[Trial, Tail]:
        return self._try(*tail), tail

    def _quantized(self, formed: Sequence[tuple[Trial, Tail]], rest: Tail) -> list[tuple[Trial, Tail]]:
        """Of quantization with each kind of ranges the best; where all layers together fail, codes that are
        computed, training, or fewer layers. ``rest``: in which shorter float what stays float is computed best, if
        there is one."""
        working = [(trial, tail) for trial, tail in formed if not trial.error]
        if not working:
            return []
        safest, (step,) = min(working, key=lambda pair: _harm(pair[0]))
        both = [self._tried(step, *rest)] if rest else []
        if self.judge.holds(safest):
            best = self.judge.best([t for t, _ in working if self.judge.passes(t)]) or safest
            return [pair for pair in working if pair[0] is best] + both + self._faster_parts(step, rest)
        better = [(self._step("GPTQ"),)]
        if self.space.trainable:
            better.append((self._step("FineTune", epochs=self._epochs(1.0), lr=1e-4),))
        for behind in better:
            mended = self._tried(step, *behind)
            if self.judge.holds(mended[0]):
                return [mended]
        return self._partly_quantized(step, rest)

    def _faster_parts(self, step: Step, rest: Tail) -> list[tuple[Trial, Tail]]:
        """Quantized but for the layers that run slower in integers than in float, and linear layers alone: integers
        may cost convolutions more than they gain, and still make the file small."""
        if self.goal.minimize != "latency":
            return []
        slower = tuple(name for name, ms in self._costs(step, rest).items() if ms[8] > ms[FLOAT])
        convolutions = tuple(layer.name for layer in self.space.layers if layer.kind == "conv")
        parts = dict.fromkeys(part for part in (slower, convolutions) if 0 < len(part) < len(self.space.layers))
        return [self._tried(_with(step, exclude=part), *rest) for part in parts]

    def _partly_quantized(self, step: Step, rest: Tail) -> list[tuple[Trial, Tail]]:
        """Some layers in integers, the others in float: the least damage for its cost, as cheap as the floor allows."""
        names = [layer.name for layer in self.space.layers]
        damage = sensitivities((step,), names, (8,), self.tools.probe)
        choices = {name: {FLOAT: 0.0, **of_layer} for name, of_layer in damage.items()}
        cost, tried = self._costs(step, rest), list[tuple[Trial, Tail]]()

        def holds(bits: Mapping[str, int]) -> bool:
            if set(bits.values()) == {FLOAT}:
                return True
            tried.append(self._tried(with_bits(step, bits), *rest))
            return self.judge.holds(tried[-1][0])

        self._bisect(choices, cost, sum(of_layer[FLOAT] for of_layer in cost.values()), holds)
        return tried

    def _costs(self, step: Step, rest: Tail) -> dict[str, dict[int, float]]:
        """What each layer costs in float and in integers: milliseconds in the runtime's own profile, where it has one
        and the time counts, else the bits of its weights."""
        if self.goal.minimize == "latency":
            before, after = self.tools.layer_times(Recipe(rest)), self.tools.layer_times(Recipe((step, *rest)))
            if before and after:
                names = [layer.name for layer in self.space.layers]
                return {n: {FLOAT: before.get(n, 0.0), 8: after.get(n, before.get(n, 0.0))} for n in names}
        return {layer.name: {b: b * layer.params for b in (FLOAT, 8)} for layer in self.space.layers}

    def _narrowed(self, holding: Sequence[Tail]) -> list[tuple[Trial, Tail]]:
        """Weights of fewer bits than 8: 4 in all layers, then for each layer what hurts least for its size, as small as
        the floor allows."""
        widths = self.space.widths
        if not holding or _NARROW not in widths:
            return []
        step: Any = _with(holding[0][0], weight_ranges="mse")
        layers = {layer.name: layer.params for layer in self.space.layers if layer.name not in step.exclude}
        tried = self._rounded(_with(step, bits=_NARROW))
        bearable = _NARROW if self.judge.holds(tried[-1][0]) else 8
        chosen = {width: widths[width] for width in near(widths, _NARROW)}
        cost, once = sizes(layers, chosen)
        high = sum(of_layer[bearable] for of_layer in cost.values()) + once[bearable]
        damage = exchanged((step, self._step("GPTQ")), layers, chosen, self.tools.exchange)

        def holds(bits: Mapping[str, int]) -> bool:
            tried.extend(self._rounded(with_bits(step, {**dict.fromkeys(step.exclude, FLOAT), **bits})))
            return self.judge.holds(tried[-1][0])

        self._bisect(damage, cost, high, holds, once)
        return tried

    def _weights_alone(self) -> None:
        """Where the size counts: weights of few bits with activations in float, as few in all layers as the floor
        allows: rounded by what is computed, and where training is allowed also values that k-means finds, trained with
        the weights."""
        widths = sorted(width for width in self.space.widths if width < 8)
        if self.goal.minimize != "size" or _NARROW not in widths:
            return
        fewer, more = [w for w in reversed(widths) if w < _NARROW], [w for w in widths if w > _NARROW]
        bits = (_NARROW, fewer, more)
        self._as_far(lambda b: (self._step("QuantizeWeights", bits=int(b)), self._step("GPTQ")), *bits)
        if self.space.trainable:
            epochs = self._epochs(1.0)
            self._as_far(lambda b: (self._step("Cluster", bits=int(b), codes="trained", epochs=epochs),), *bits)

    def _priced(self) -> list[tuple[Trial, Tail]]:
        """Weights as integers under a price for their bits, as high as the floor allows: rounded, and where training
        is allowed trained; as tails they follow less structure at the same price."""
        if _NARROW not in self.space.widths or not self.space.layers:
            return []
        tried = self._as_far(lambda p: (self._step("RateDistortion", price=p),), *self._prices("RateDistortion"))
        if self.space.trainable:
            epochs = self._epochs(1.0)
            tried += self._as_far(lambda p: (self._step("EPR", price=p, epochs=epochs),), *self._prices("EPR"))
        return tried

    def _prices(self, step: str) -> tuple[float, list[float], list[float]]:
        """Of a kilobyte: where the search begins, what is higher, and what is lower."""
        kilobytes = sum(layer.params for layer in self.space.layers) / 8000  # of one bit per weight
        first = _PRICES[step] / kilobytes
        prices = [_two_digits(first * 2**n) for n in range(-_DOUBLINGS, _DOUBLINGS + 1)]
        return prices[_DOUBLINGS], prices[_DOUBLINGS + 1 :], prices[:_DOUBLINGS][::-1]

    def _as_far(
        self, form: Callable[[float], Tail], start: float, further: Sequence[float], back: Sequence[float]
    ) -> list[tuple[Trial, Tail]]:
        """From ``start`` on ``further`` while the floor holds; where it does not hold even there, ``back`` until it
        does."""
        tried = [self._tried(*form(start))]
        held = self.judge.holds(tried[0][0])
        for setting in further if held else back:
            tried.append(self._tried(*form(setting)))
            if self.judge.holds(tried[-1][0]) != held:
                break
        return tried

    def _bisect(
        self,
        damage: Choices,
        cost: Choices,
        high: float,
        holds: Callable[[Mapping[str, int]], bool],
        once: Mapping[int, float] | None = None,
    ) -> None:
        """Ask ``holds`` of allocations at limits between the cheapest one's cost and ``high``, at which the floor holds
        as far as is known: those that hold lead lower, the others higher."""
        low = sum(min(of_layer.values()) for of_layer in cost.values())
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            bits = least_damage(damage, cost, middle, once)
            if bits is not None and holds(bits):
                high = middle
            else:
                low = middle

    def _rounded(self, step: Step) -> list[tuple[Trial, Tail]]:
        """Quantization, rounding to the nearest; and while that fails, rounding that is computed, then what is learned
        from the data, by training where that is allowed."""
        learned = self._step("LSQ", epochs=self._epochs(1.0)) if self.space.trainable else self._step("Reconstruct")
        tried: list[tuple[Trial, Tail]] = []
        for behind in ((), (self._step("GPTQ"),), (learned,)):
            tried.append(self._tried(step, *behind))
            if self.judge.holds(tried[-1][0]):
                break
        return tried

    def _epochs(self, effort: float, macs: float = 1.0) -> float:
        """So many epochs that a trial takes its share of the budget, to two digits: training costs a teacher that stays
        as it is and a student with ``macs`` of its MACs."""
        seconds = self.goal.budget.seconds
        allowance = effort * (seconds / _TRIALS_PER_BUDGET if seconds is not None else _TRAINING_S)
        epoch = self.tools.seconds_per_sample() * self.space.n_train * (_TEACHER + (1 - _TEACHER) * macs)
        epochs = allowance / max(epoch, 1e-9)
        return _two_digits(min(epochs, _LONGEST_EPOCHS * effort))

    # ----------------------------------------------------------------------------------------------------- refinement

    def _refine(self) -> None:
        """Try every single notch around the best; where one is better, begin again around that; end when none is."""
        centre, before = self.best, None
        while centre is not None and centre is not before:
            for neighbour in neighbours(centre.recipe, self.space, self.goal, self.tools.steps, self.alignment):
                trial = self._try(*neighbour.steps)
                if self.judge.passes(trial) and self.judge.improves(trial, centre):
                    break
            centre, before = self.best, centre


def neighbours(
    recipe: Recipe, space: Space, goal: Goal, steps: Mapping[str, Callable[..., Step]], alignment: int = 1
) -> Iterator[Recipe]:
    """The recipes a single notch from this one that may be better, the most promising first: one group with fewer
    channels (by one of the target's blocks of ``alignment`` channels), one layer as a smaller product, one layer fewer
    in float, one layer in fewer bits, other ranges, a higher price for bytes, no integers, integers."""
    for i, step in enumerate(recipe.steps):
        rest = recipe.steps[:i], recipe.steps[i + 1 :]
        for changed in _moves(step, space, goal, steps, alignment):
            yield Recipe((*rest[0], changed, *rest[1]))
    quantized = [type(step).__name__ == "Quantize" for step in recipe.steps]
    if any(quantized) and len(quantized) > 1:
        yield Recipe(tuple(step for step, q in zip(recipe.steps, quantized, strict=True) if not q))
    elif space.integer and not any(quantized):
        yield Recipe((*recipe.steps, steps["Quantize"]()))


def _moves(
    step: Step, space: Space, goal: Goal, steps: Mapping[str, Callable[..., Step]], alignment: int
) -> Iterator[Step]:
    settings: Any = step
    if type(step).__name__ in (CHANNELS, HEADS, *(layer.factors for layer in space.factorable)):
        named = space.removed_by(type(step).__name__)
        for name, ratio in _by_saving(step, space, goal, alignment):
            yield _with(step, layers=dict(settings.layers) | {named.get(name, name): round(ratio, 5)})
    elif type(step).__name__ == BLOCKS:
        for name, _ in _by_saving(step, space, goal, alignment):
            yield _with(step, blocks=(*settings.blocks, space.groups[name].name))
    elif type(step).__name__ == "Quantize":
        for name in settings.exclude:
            yield _with(step, exclude=tuple(n for n in settings.exclude if n != name))
        if goal.minimize == "size":
            yield from _narrower(step, space)
        for ranges in RANGES:
            if ranges != settings.ranges:
                yield _with(step, ranges=ranges)
    elif type(step).__name__ in _PRICES:
        yield _with(step, price=_two_digits(settings.price * _DEARER))


def _narrower(step: Step, space: Space) -> Iterator[Step]:
    """One layer in the next fewer bits that make a file smaller, the one that saves most first."""
    settings: Any = step
    moves = []
    for layer in space.layers:
        bits = settings.layers.get(layer.name, settings.bits)
        fewer = [b for b in space.widths if b < bits]
        if fewer and layer.name not in settings.exclude:
            cost = sizes({layer.name: layer.params}, space.widths)[0][layer.name]
            saved = cost.get(bits, layer.params) - cost[max(fewer)]
            moves.append((saved, layer.name, max(fewer)))
    for _, name, bits in sorted(moves, reverse=True):
        layers = {n: b for n, b in (dict(settings.layers) | {name: bits}).items() if b != settings.bits}
        yield _with(step, layers=layers, weight_ranges="mse")


def _two_digits(number: float) -> float:
    return float(f"{number:.2g}")


def _harm(trial: Trial) -> tuple[float, float]:
    """Orders trials by their drop; those whose scoring ended early come last, by the score that they had."""
    drop = trial.measurements.get("drop")
    return (math.inf if drop is None else drop.value, -trial.measurements["score"].value)


def _by_saving(step: Step, space: Space, goal: Goal, alignment: int) -> list[tuple[str, float]]:
    """The groups, or layers, that can go one notch further, with the ratio that this is; what saves most first."""
    technique, costs = type(step).__name__, counted(space, goal.minimize)
    groups = space.removed_by(technique)
    layers = {layer.name: layer.name for layer in space.factorable if layer.factors == technique}
    now = _ratios(step, groups or layers)
    found = []
    for name, ratio in now.items():
        choices: Sequence[float] = FACTORED
        if groups:
            group, left = space.groups[name], filled_up(space.groups[name], 1 - ratio, alignment)
            choices = [1 - k for k in group.keeps if alignment == 1 or filled_up(group, k, alignment) < left]
        further = next((choice for choice in choices if choice > ratio + _ROUNDED), None)
        if further is not None:
            ratios = {**now, name: further}
            made = Allocation({n: 1 - r for n, r in ratios.items()}) if groups else Allocation(forms=ratios)
            found.append((costs.of(made), name, further))
    return [(name, further) for _, name, further in sorted(found)]


def _ratios(step: Step, named: Mapping[str, str]) -> dict[str, float]:
    """What a step removes of each, by its key."""
    settings: Any = step
    if type(step).__name__ == BLOCKS:
        return {key: float(name in settings.blocks) for key, name in named.items()}
    return {key: settings.layers.get(name, getattr(step, "ratio", 0.0)) for key, name in named.items()}


def _with(step: Step, **settings: object) -> Step:
    return replace(step, **settings)  # type: ignore[type-var]
