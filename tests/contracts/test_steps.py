"""What every step promises, checked over the table of steps; each check is shown to catch a step that breaks it.

A step that is listed in ``STEPS`` is tested with its defaults, and with the settings below where it has an entry; a
step that needs another before it is tested behind that one.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from laconic import surgery
from laconic.core import Context, Facts, Recipe, Step, Task
from laconic.errors import RecipeError
from laconic.steps import STEPS
from laconic.steps.settings import check_types
from tests.networks import INTEGER, context, inputs_of, network, task_for, tensors

TRAITS = dataclasses.replace(INTEGER, precisions=("f32", "bf16"))
NAMES = ["residual", "mlp", "pair"]


@dataclass(frozen=True)
class Case:
    """``working`` settings; settings of no strength, which change no output; settings to be refused; the step that has
    to come ``before``, with its defaults, if there is one."""

    working: Mapping[str, Any] = field(default_factory=dict)
    other: Mapping[str, Any] = field(default_factory=dict)
    zero: Mapping[str, Any] | None = None
    bad: tuple[Mapping[str, Any], ...] = ()
    before: str | None = None


_BAD_TRAINING: tuple[Mapping[str, Any], ...] = (
    {"epochs": -1},
    {"lr": 0},
    {"batch": 0},
    {"batch": 2.5},
    {"distill": 1.5},
    {"distill": -0.1},
)
_BAD_FACTORS: tuple[Mapping[str, Any], ...] = (
    {"ratio": 1.0},
    {"ratio": -0.1},
    {"ratio": "half"},
    {"ratio": True},
    {"layers": {"stem.0": 2.5}},
    {"layers": {"stem.0": -1}},
    {"layers": ["stem.0"]},
    {"exclude": "stem.0"},
)
_FACTORS = Case(working={"ratio": 0.3}, other={"ratio": 0.5}, zero={"ratio": 0.0}, bad=_BAD_FACTORS)
CASES = {
    "LowRank": dataclasses.replace(_FACTORS, other={"energy": 0.9}, bad=(*_BAD_FACTORS, {"energy": 1.0})),
    "Tucker2": dataclasses.replace(_FACTORS, other={"vbmf": True}, bad=(*_BAD_FACTORS, {"vbmf": 1})),
    "CP": _FACTORS,
    "SpatiallySeparable": _FACTORS,
    "DepthwiseSeparable": _FACTORS,
    "PruneChannels": Case(
        working={"ratio": 0.5},
        other={"ratio": 0.25},
        zero={"ratio": 0.0},
        bad=(
            {"ratio": 1.0},
            {"ratio": -0.1},
            {"ratio": "0.5"},
            {"ratio": True},
            {"layers": {"conv": 1.5}},
            {"layers": {"conv": "half"}},
            {"layers": ["conv"]},
            {"criterion": "movement"},
            {"scope": "block"},
            {"recovery": "lasso"},
        ),
    ),
    "PruneHeads": Case(
        working={"ratio": 0.5},
        other={"ratio": 0.5, "criterion": "obs"},
        zero={"ratio": 0.0},
        bad=(
            {"ratio": 1.0},
            {"ratio": -0.1},
            {"layers": {"attn": 1}},
            {"criterion": "apoz"},
            {"recovery": "batch_norm"},
        ),
    ),
    "PruneBlocks": Case(
        working={"ratio": 0.5},
        other={"blocks": ["blocks.0"], "recovery": "least_squares"},
        zero={"ratio": 0.0},
        bad=({"ratio": 1.0}, {"ratio": "half"}, {"blocks": "blocks.0"}, {"blocks": [0]}),
    ),
    "PruneWeights": Case(
        working={"density": 0.25, "criterion": "woodfisher", "update": "obs"},
        other={"granularity": "2:4", "criterion": "l1"},
        zero={"density": 1.0},
        bad=(
            {"density": 0},
            {"density": 1.5},
            {"density": True},
            {"layers": {"conv": 0.0}},
            {"granularity": "row"},
            {"granularity": "0x4"},
            {"granularity": "4:4"},
            {"granularity": "2:4", "density": 0.25},
            {"granularity": "2:4", "scope": "global"},
            {"granularity": "2:4", "layers": {"conv": 0.25}},
            {"criterion": "bn_scale"},
            {"criterion": "apoz"},
            {"criterion": "geometric_median"},
            {"update": "adam"},
            {"exclude": "conv"},
        ),
    ),
    "PruneGradually": Case(
        working={"density": 0.3, "rounds": 2, "epochs": 1, "batch": 16},
        other={"density": 0.3, "rounds": 1, "epochs": 1, "batch": 16},
        bad=(
            *_BAD_TRAINING,
            {"rounds": 0},
            {"density": 0},
            {"layers": {"conv": 0.0}},
            {"granularity": "2:4"},
            {"criterion": "apoz"},
        ),
    ),
    "Slim": Case(
        working={"strength": 0.01, "epochs": 1, "batch": 16},
        other={"strength": 0.02, "epochs": 1, "batch": 16},
        zero={"epochs": 0},
        bad=(*_BAD_TRAINING, {"strength": -1e-3}),
    ),
    "FineTune": Case(
        working={"epochs": 1, "lr": 3e-3, "batch": 16, "distill": 0.5},
        other={"epochs": 1, "lr": 1e-3, "batch": 16},
        zero={"epochs": 0},
        bad=(
            {"epochs": -1},
            {"epochs": "three"},
            {"lr": 0},
            {"lr": math.inf},
            {"batch": 0},
            {"batch": 2.5},
            {"batch": True},
            {"weight_decay": -1e-3},
            {"distill": 1.5},
            {"distill": -0.1},
            {"temperature": 0},
        ),
    ),
    "Equalize": Case(
        other={"absorb": False},
        bad=({"absorb": "yes"}, {"clamped": -0.1}, {"clamped": 1.5}, {"clamped": True}),
    ),
    "Smooth": Case(other={"alpha": 0.25}, bad=({"alpha": -0.1}, {"alpha": 1.1}, {"alpha": "half"}, {"alpha": True})),
    "Quantize": Case(
        other={"ranges": "minmax", "bias_correction": False},
        zero={"exclude": ["*"]},
        bad=(
            {"ranges": "widest"},
            {"ranges": ["mse"]},
            {"bias_correction": "yes"},
            {"exclude": "conv1"},
            {"exclude": [1]},
            {"bits": 1},
            {"bits": 9},
            {"activation_bits": 3},
            {"layers": {"stem.0": 1}},
            {"layers": {"stem.0": 4.0}},
            {"per_channel": 1},
            {"weight_ranges": "entropy"},
        ),
    ),
    "LSQ": Case(
        working={"epochs": 1, "lr": 3e-3, "batch": 16},
        other={"epochs": 1, "lr": 1e-3, "batch": 16},
        zero={"epochs": 0},
        bad=_BAD_TRAINING,
        before="Quantize",
    ),
    "EPR": Case(
        working={"epochs": 1, "lr": 3e-3, "batch": 16, "price": 0.5},
        other={"epochs": 0},
        zero={"exclude": ["*"]},
        bad=(
            *_BAD_TRAINING,
            {"price": -1},
            {"bits": 1},
            {"bits": 9},
            {"bias_bits": 1},
            {"frozen": 1.0},
            {"frozen": -0.1},
            {"exclude": "conv1"},
        ),
    ),
    "RateDistortion": Case(
        working={"price": 0.1},
        other={"price": 1.0},
        zero={"exclude": ["*"]},
        bad=({"price": 0}, {"price": -1}, {"price": "high"}, {"exclude": "conv1"}),
    ),
    "Ternary": Case(
        working={"epochs": 1, "lr": 3e-3, "batch": 16, "keep_ends": False},
        other={"epochs": 0},
        bad=(*_BAD_TRAINING, {"keep_ends": 1}),
    ),
    "Binary": Case(
        working={"epochs": 1, "lr": 3e-3, "batch": 16, "activations": True},
        other={"epochs": 1, "batch": 16},
        bad=(*_BAD_TRAINING, {"activations": "both"}),
    ),
    "GPTQ": Case(other={"order": False}, bad=({"order": "yes"},), before="Quantize"),
    "AdaRound": Case(
        working={"iterations": 10},
        other={"iterations": 20},
        bad=({"iterations": 0}, {"iterations": 2.5}, {"iterations": True}),
        before="Quantize",
    ),
    "Reconstruct": Case(
        working={"iterations": 10, "batch": 24},
        other={"iterations": 20},
        bad=({"iterations": 0}, {"batch": 0}, {"batch": "all"}, {"drop": 1}),
        before="Quantize",
    ),
    "Cluster": Case(
        working={"bits": 2},
        other={"bits": 1, "epochs": 1, "batch": 16},
        zero={"exclude": ["*"]},
        bad=(
            *_BAD_TRAINING,
            {"bits": 0},
            {"bits": 9},
            {"bits": 2.5},
            {"bits": True},
            {"layers": {"conv1": 9}},
            {"layers": {"conv1": 2.0}},
            {"exclude": "conv1"},
        ),
    ),
    "HashedNets": Case(
        working={"ratio": 0.25, "epochs": 1, "batch": 16},
        other={"ratio": 0.5},
        zero={"ratio": 1.0},
        bad=(
            *_BAD_TRAINING,
            {"ratio": 0},
            {"ratio": 1.5},
            {"ratio": True},
            {"layers": {"conv1": 0.0}},
            {"layers": ["conv1"]},
            {"exclude": "conv1"},
        ),
    ),
    "ProductQuantize": Case(
        working={"entries": 8},
        other={"entries": 4, "length": 2},
        zero={"exclude": ["*"]},
        bad=({"entries": 1}, {"entries": 257}, {"entries": 2.5}, {"length": 0}, {"length": 26}, {"exclude": [1]}),
    ),
    "QuantizeWeights": Case(
        working={"bits": 3, "group": 16},
        other={"bits": 2},
        zero={"exclude": ["*"]},
        bad=({"bits": 1}, {"bits": 9}, {"bits": 4.0}, {"group": 8}, {"group": -1}, {"exclude": "conv1"}),
    ),
    "CastWeights": Case(
        working={"precision": "f8e4m3"},
        other={"precision": "bf16"},
        zero={"exclude": ["*"]},
        bad=({"precision": "f32"}, {"precision": "f8"}, {"precision": 16}, {"exclude": "conv1"}),
    ),
    "Cast": Case(other={"precision": "f32"}, zero={"precision": "f32"}, bad=({"precision": "f64"}, {"precision": 16})),
}


FORMS = (
    "PruneWeights",
    "PruneGradually",
    "Quantize",
    "QuantizeWeights",
    "CastWeights",
    "RateDistortion",
    "EPR",
    "Ternary",
    "Binary",
    "Cluster",
    "HashedNets",
    "ProductQuantize",
)
"""Steps that give weights another form: such a weight is neither pruned nor given a second form."""


FACTORS = ("LowRank", "Tucker2", "CP", "SpatiallySeparable", "DepthwiseSeparable")
"""Steps that replace layers whose weights are plain ones."""


def case_of(name: str) -> Case:
    return CASES.get(name, Case())


def recipe_of(*steps: Step) -> Recipe:
    """The steps as a recipe, each behind the one that it needs."""
    whole: list[Step] = []
    for step in steps:
        before = case_of(type(step).__name__).before
        if before is not None and not any(isinstance(one, STEPS[before]) for one in whole):
            whole.append(build(before, {}))
        whole.append(step)
    return Recipe(tuple(whole))


def build(name: str, settings: Mapping[str, Any]) -> Step:
    (step,) = Recipe.parse([{"step": name, **settings}], STEPS).steps
    return step


def given(seed: int = 0) -> Context:
    teacher = network("residual", seed=3)

    def reference(inputs: Any) -> Any:
        if next(iter(inputs)) != "x":
            return {"output": torch.zeros(len(next(iter(inputs.values()))), 4)}
        return surgery.call(teacher, inputs)

    return context(traits=TRAITS, seed=seed, reference=reference)


def state_of(model: nn.Module) -> str:
    """A hash of a model: what it is made of and every number in it."""
    sha = hashlib.sha256(f"{model!r} {model.training} {'forward' in vars(model)}".encode())
    for key, value in model.state_dict().items():
        sha.update(f"{key} {value.dtype} {tuple(value.shape)}".encode() + value.numpy().tobytes())
    return sha.hexdigest()


def outputs_of(model: nn.Module, name: str) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {key: y.numpy() for key, y in surgery.call(model.eval(), tensors(inputs_of(name, 6, seed=8))).items()}


def same(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return list(a) == list(b) and all(np.array_equal(y, b[key]) for key, y in a.items())


# -------------------------------------------------------------------------------------------------------------- checks


def check_form(kind: type[Step]) -> None:
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert isinstance(kind(), Step)
    assert isinstance(kind.version, int)
    assert kind.version >= 1
    assert kind.__doc__
    assert not kind.__doc__.startswith(f"{kind.__name__}("), "a docstring of its own"
    for one in dataclasses.fields(kind):
        assert one.default is not dataclasses.MISSING or one.default_factory is not dataclasses.MISSING, one.name


def check_leaves_its_input_alone(recipe: Recipe, name: str) -> None:
    model, task = network(name), task_for(name)
    before, samples = state_of(model), copy.deepcopy(task.train.inputs)  # type: ignore[attr-defined]
    recipe.apply(model, task, given())
    assert state_of(model) == before
    assert same(task.train.inputs, samples)  # type: ignore[attr-defined]


def check_repeats(step: Step, name: str) -> None:
    made = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        np.random.seed(noise)
        made.append(recipe_of(step).apply(network(name), task_for(name), given(seed=7)))
    (first, facts), (second, again) = made
    assert facts == again
    assert same(outputs_of(first, name), outputs_of(second, name))


def check_keeps_the_outputs_form(step: Step, name: str) -> None:
    model, _ = recipe_of(step).apply(network(name), task_for(name), given())
    wanted, found = outputs_of(network(name), name), outputs_of(model, name)
    assert {key: (y.shape, y.dtype) for key, y in found.items()} == {k: (y.shape, y.dtype) for k, y in wanted.items()}
    assert all(np.isfinite(y).all() for y in found.values())
    assert surgery.weighted_layers(model), "its layers can still be found"


def check_does_something(step: Step, name: str) -> None:
    model, _ = recipe_of(step).apply(network(name), task_for(name), given())
    without, _ = Recipe(recipe_of(step).steps[:-1]).apply(network(name), task_for(name), given())
    assert state_of(model) != state_of(without) or getattr(model, "precision", "f32") != "f32"


def check_changes_nothing(step: Step, name: str) -> None:
    model, _ = recipe_of(step).apply(network(name), task_for(name), given())
    without, _ = Recipe(recipe_of(step).steps[:-1]).apply(network(name), task_for(name), given())
    wanted, found = outputs_of(without, name), outputs_of(model, name)
    for key, y in wanted.items():
        np.testing.assert_allclose(found[key], y, rtol=1e-5, atol=1e-5)


def check_refuses(kind: type[Step], settings: Mapping[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse([{"step": "It", **settings}], {"It": kind})
    assert "\n" not in str(caught.value)


def check_rebuilds(steps: tuple[Step, ...], name: str) -> None:
    recipe = recipe_of(*steps)
    model, facts = recipe.apply(network(name), task_for(name), given())
    written = json.dumps(facts, allow_nan=False)
    assert json.loads(written) == facts, "facts are JSON"
    original = network(name, seed=5)
    before = state_of(original)
    again = recipe.restore(original, json.loads(written))
    again.load_state_dict(model.state_dict())
    assert same(outputs_of(again, name), outputs_of(model, name))
    assert getattr(again, "precision", "f32") == getattr(model, "precision", "f32")
    assert state_of(original) == before


def check_is_written_and_read(step: Step, table: Mapping[str, type[Step]]) -> None:
    recipe = Recipe((step, step))
    for rows in (json.loads(json.dumps(recipe.to_json())), yaml.safe_load(yaml.safe_dump(recipe.to_json()))):
        again = Recipe.parse(rows, table)
        assert again == recipe
        assert again.key == recipe.key
        assert str(again) == str(recipe)


def check_keys(step: Step, other: Step) -> None:
    assert Recipe((step,)).key == Recipe((copy.copy(step),)).key
    assert Recipe((step,)).key != Recipe((other,)).key
    newer = type(type(step).__name__, (type(step),), {"version": type(step).version + 1})
    values = {one.name: getattr(step, one.name) for one in dataclasses.fields(step)}  # type: ignore[arg-type]
    assert Recipe((newer(**values),)).key != Recipe((step,)).key


# ---------------------------------------------------------------------------------------------- every step, every check


def working(name: str) -> Step:
    return build(name, case_of(name).working)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_a_frozen_dataclass_with_defaults(step: str) -> None:
    check_form(STEPS[step])
    assert STEPS[step].__name__ == step


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("step", STEPS)
def test_the_input_is_left_alone(step: str, name: str) -> None:
    check_leaves_its_input_alone(recipe_of(working(step)), name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("step", STEPS)
def test_the_seed_decides(step: str, name: str) -> None:
    check_repeats(working(step), name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("step", STEPS)
def test_outputs_keep_their_form(step: str, name: str) -> None:
    check_keeps_the_outputs_form(working(step), name)


@pytest.mark.parametrize("step", STEPS)
def test_it_does_something(step: str) -> None:
    check_does_something(working(step), "attention" if step == "PruneHeads" else "residual")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("step", [name for name in STEPS if case_of(name).zero is not None])
def test_no_strength_changes_nothing(step: str, name: str) -> None:
    check_changes_nothing(build(step, case_of(step).zero or {}), name)


@pytest.mark.parametrize(("step", "settings"), [(name, bad) for name in STEPS for bad in case_of(name).bad])
def test_bad_settings_are_refused(step: str, settings: Mapping[str, Any]) -> None:
    check_refuses(STEPS[step], settings)


@pytest.mark.parametrize(
    ("step", "setting"), [(name, one.name) for name, kind in STEPS.items() for one in dataclasses.fields(kind)]
)
@pytest.mark.parametrize("value", [None, math.nan, {"a": {}}, [[]]])
def test_nonsense_is_refused_in_every_setting(step: str, setting: str, value: Any) -> None:
    check_refuses(STEPS[step], {setting: value})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("step", STEPS)
def test_facts_and_weights_rebuild_the_model(step: str, name: str) -> None:
    check_rebuilds((working(step),), name)


@pytest.mark.parametrize("step", STEPS)
def test_recipes_are_written_and_read(step: str) -> None:
    check_is_written_and_read(working(step), STEPS)
    check_is_written_and_read(build(step, case_of(step).other), STEPS)


@pytest.mark.parametrize("step", [name for name in STEPS if case_of(name).other])
def test_keys(step: str) -> None:
    check_keys(working(step), build(step, case_of(step).other))


@pytest.mark.parametrize("pair", list(itertools.product(STEPS, STEPS)), ids="-".join)
def test_steps_compose_or_say_that_they_do_not(pair: tuple[str, str]) -> None:
    steps = tuple(working(name) for name in pair)
    try:
        check_rebuilds(steps, "residual")
    except RecipeError:
        assert pair[0] in FORMS or case_of(pair[0]).before
        needs_plain = (*FORMS, *FACTORS, "PruneChannels", "PruneHeads", "PruneBlocks", "Equalize", "Smooth")
        assert pair[1] in needs_plain or case_of(pair[1]).before


# ------------------------------------------------------------------------------------------- every check, a broken step


@dataclass(frozen=True)
class Good:
    """Scales the first layer; the steps below break one promise each."""

    strength: float = 0.5

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_types(self)

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        with torch.no_grad():
            self.first(model).weight.mul_(1 - self.strength)
        return model, {"strength": self.strength}

    def restore(self, model: Any, facts: Facts) -> Any:
        return model

    @staticmethod
    def first(model: Any) -> Any:
        return next(iter(surgery.weighted_layers(model).values()))


class Careless(Recipe):
    """Forgets the copy."""

    def apply(self, model: Any, task: Task, context: Context) -> tuple[Any, list[Facts]]:
        for step in self.steps:
            model, _ = step(model, task, context)
        return model, []


@dataclass(frozen=True)
class SpoilsData(Good):
    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        next(iter(task.train.inputs.values()))[:] *= 2  # type: ignore[attr-defined]
        return model, {}


@dataclass(frozen=True)
class Random(Good):
    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        with torch.no_grad():
            self.first(model).weight.add_(torch.randn(()))
        return model, {}


@dataclass(frozen=True)
class RandomFacts(Good):
    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        return model, {"drawn": float(np.random.random())}


@dataclass(frozen=True)
class Wider(Good):
    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        return nn.Sequential(model, nn.Linear(4, 5)), {}


@dataclass(frozen=True)
class Overflows(Good):
    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        with torch.no_grad():
            self.first(model).weight.mul_(math.inf)
        return model, {}


@dataclass(frozen=True)
class NeverZero(Good):
    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        return Good(max(self.strength, 0.1))(model, task, context)


@dataclass(frozen=True)
class Idle(Good):
    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        return model, {}


@dataclass(frozen=True)
class Trusting(Good):
    def __post_init__(self) -> None:
        pass


@dataclass(frozen=True)
class FactsOfTensors(Good):
    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        return model, {"weight": torch.ones(1)}


@dataclass(frozen=True)
class FactsWithNan(Good):
    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        return model, {"loss": math.nan}


@dataclass(frozen=True)
class FactsOfTuples(Good):
    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        return model, {"layers": ("a", "b")}


@dataclass(frozen=True)
class Forgetful(Good):
    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        layer = self.first(model)
        layer.register_forward_hook(lambda module, args, output: output * 0.5)
        return model, {}


@dataclass(frozen=True)
class Nested(Good):
    """A setting that JSON does not bring back."""

    pairs: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        pass


@dataclass(frozen=True)
class Hidden(Good):
    """A setting that is no field."""

    def __init__(self, strength: float = 0.5) -> None:
        object.__setattr__(self, "strength", 0.5)
        object.__setattr__(self, "really", strength)


@dataclass
class Thawed:
    """Not frozen."""

    strength: float = 0.5
    version: ClassVar[int] = 1
    __call__, restore = Good.__call__, Good.restore


@dataclass(frozen=True)
class Unversioned:
    """Lacks a version."""

    __call__, restore = Good.__call__, Good.restore


def all_checks() -> None:
    """The good step passes them all."""
    check_form(Good)
    for name in NAMES:
        check_leaves_its_input_alone(Recipe((Good(),)), name)
        check_repeats(Good(), name)
        check_keeps_the_outputs_form(Good(), name)
        check_changes_nothing(Good(0.0), name)
        check_rebuilds((Good(),), name)
    check_does_something(Good(), "residual")
    check_refuses(Good, {"strength": "much"})
    check_is_written_and_read(Good(0.25), {"Good": Good})
    check_keys(Good(0.25), Good(0.5))


def test_a_good_step_passes() -> None:
    all_checks()


BROKEN: dict[str, Callable[[], None]] = {
    "thawed": lambda: check_form(Thawed),
    "without version": lambda: check_form(Unversioned),  # type: ignore[type-abstract]
    "no copy": lambda: check_leaves_its_input_alone(Careless((Good(),)), "mlp"),
    "spoils the data": lambda: check_leaves_its_input_alone(Recipe((SpoilsData(),)), "mlp"),
    "random": lambda: check_repeats(Random(), "mlp"),
    "random facts": lambda: check_repeats(RandomFacts(), "mlp"),
    "wider": lambda: check_keeps_the_outputs_form(Wider(), "mlp"),
    "overflows": lambda: check_keeps_the_outputs_form(Overflows(), "mlp"),
    "never zero": lambda: check_changes_nothing(NeverZero(0.0), "mlp"),
    "idle": lambda: check_does_something(Idle(), "mlp"),
    "trusting": lambda: check_refuses(Trusting, {"strength": "much"}),
    "facts of tensors": lambda: check_rebuilds((FactsOfTensors(),), "mlp"),
    "facts with NaN": lambda: check_rebuilds((FactsWithNan(),), "mlp"),
    "facts of tuples": lambda: check_rebuilds((FactsOfTuples(),), "mlp"),
    "forgetful": lambda: check_rebuilds((Forgetful(),), "mlp"),
    "nested": lambda: check_is_written_and_read(Nested(0.5, (("a", 1.0),)), {"Nested": Nested}),
    "hidden": lambda: check_keys(Hidden(0.1), Hidden(0.9)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_step_is_caught(name: str) -> None:
    with pytest.raises((AssertionError, TypeError, ValueError, pytest.fail.Exception)):
        BROKEN[name]()
