"""The nouns: what the user writes is read exactly or refused in one line; a recipe's key says what it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from laconic.core import Batch, Context, Measurement, Metric, Preprocess, Recipe, Step, Target, Task, Traits, digest
from laconic.errors import RecipeError, TargetError

# -------------------------------------------------------------------------------------------------------------- digest


def test_digest_is_of_the_content() -> None:
    assert digest({"a": 1, "b": [2.5, "é"]}) == digest({"b": [2.5, "é"], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest([]) == "4f53cda18c2baa0c", "the first digits of the SHA-256 of []"
    assert len(digest("x", length=40)) == 40


def test_digest_refuses_what_is_not_json() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        digest({"a": float("nan")})


# -------------------------------------------------------------------------------------------------------------- target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("onnxruntime", Target("onnxruntime", "cpu", 1, 1)),
        ("openvino:cpu", Target("openvino", "cpu", 1, 1)),
        ("torch:cuda,batch=8", Target("torch", "cuda", 1, 8)),
        ("onnxruntime:cpu,threads=4,batch=2", Target("onnxruntime", "cpu", 4, 2)),
        ("onnxruntime:,threads=4", Target("onnxruntime", "cpu", 4, 1)),
    ],
)
def test_targets(text: str, target: Target) -> None:
    assert Target.parse(text) == target
    assert Target.parse(str(target)) == target


@given(st.sampled_from(["onnxruntime", "x"]), st.sampled_from(["cpu", "cuda"]), st.integers(1), st.integers(1))
def test_targets_read_back_as_they_are_written(runtime: str, device: str, threads: int, batch: int) -> None:
    target = Target(runtime, device, threads, batch)
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize(
    "text",
    ["", ":cpu", ",batch=1", "a:cpu,batch=0", "a:cpu,batch=-1", "a,batch", "a,size=2", "a,batch=²", "a,,batch=1"],
)
def test_targets_that_cannot_be_read(text: str) -> None:
    with pytest.raises(TargetError, match="a target"):
        Target.parse(text)


# ---------------------------------------------------------------------------------------------------------------- task


class Numbers:
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def read(self, indices: Any) -> Batch:
        return Batch({"x": list(indices)}, None)


@pytest.mark.parametrize(("n", "wanted"), [(10, [0, 1, 2, 3]), (3, [0, 1, 2])])
def test_calibration_is_the_beginning_of_train(n: int, wanted: list[int]) -> None:
    metric = Metric("m", lambda o, t: [], lambda o: [], lambda r: 0.0, binary=True)
    train, other = Numbers(n), Numbers(5)
    task = Task("t", metric, train, other, other, None, False, "f", calibration=4)
    assert task.calibration_batch().inputs == {"x": wanted}


def test_preprocess_round_trip() -> None:
    stated = Preprocess(channels="BGR", resize=(8, 9), crop=(4, 4), mean=(1.0, 2.0, 3.0), layout="NHWC")
    assert Preprocess.from_json(json.loads(json.dumps(stated.to_json()))) == stated
    assert Preprocess.from_json(Preprocess().to_json()) == Preprocess()


# ------------------------------------------------------------------------------------------------------------- recipes


@dataclass(frozen=True)
class Append:
    """Puts ``value`` at the end of a list, which stands for a model."""

    value: float = 1.0
    names: tuple[str, ...] = ()
    layers: Mapping[str, float] = field(default_factory=dict)

    version: ClassVar[int] = 1

    def __call__(self, model: Any, task: Any, context: Any) -> tuple[Any, dict[str, Any]]:
        model.append(self.value)
        return model, {"n": len(model)}

    def restore(self, model: Any, facts: dict[str, Any]) -> Any:
        assert facts["n"] == len(model) + 1
        model.append(self.value)
        return model


@dataclass(frozen=True)
class Newer(Append):
    version: ClassVar[int] = 2


TABLE: dict[str, type[Step]] = {"Append": Append}
CONTEXT = Context(traits=Traits())


def test_apply_runs_the_steps_in_order_on_a_copy() -> None:
    model = [0.0]
    recipe = Recipe((Append(2.0), Append(3.0)))
    changed, facts = recipe.apply(model, None, CONTEXT)  # type: ignore[arg-type]
    assert changed == [0.0, 2.0, 3.0]
    assert facts == [{"n": 2}, {"n": 3}]
    assert model == [0.0]
    assert recipe.restore(model, facts) == changed
    assert model == [0.0]
    with pytest.raises(ValueError, match="zip"):
        recipe.restore(model, facts[:1])


@pytest.mark.parametrize(
    "recipe",
    [Recipe(), Recipe((Append(),)), Recipe((Append(2.5, ("a", "b*")), Append(1.0, (), {"x.y": 0.5}), Append()))],
)
def test_recipes_are_written_and_read(recipe: Recipe) -> None:
    rows = recipe.to_json()
    assert Recipe.parse(json.loads(json.dumps(rows)), TABLE) == recipe
    again = Recipe.parse(yaml.safe_load(yaml.safe_dump(rows)), TABLE)
    assert again == recipe
    assert again.key == recipe.key


def test_recipes_are_written_shortly() -> None:
    recipe = Recipe((Append(), Append(0.25, ("a",), {"x": 0.5, "y": 0.1})))
    assert recipe.to_json() == [
        {"step": "Append"},
        {"step": "Append", "value": 0.25, "names": ["a"], "layers": {"x": 0.5, "y": 0.1}},
    ]
    assert str(recipe) == "Append + Append(value 0.25, names ['a'], x 0.5, y 0.1)"
    assert str(Recipe()) == "the original"


def test_a_key_is_of_steps_settings_order_and_version() -> None:
    keys = [
        Recipe(steps).key
        for steps in [
            (),
            (Append(),),
            (Append(2.0),),
            (Append(names=("a",)),),
            (Append(layers={"a": 0.5}),),
            (Append(), Append()),
            (Append(), Append(2.0)),
            (Append(2.0), Append()),
        ]
    ]
    assert len(set(keys)) == len(keys)
    assert Recipe((Append(),)).key == Recipe((Append(1.0),)).key
    Newer.__name__ = "Append"
    assert Recipe((Newer(),)).key != Recipe((Append(),)).key


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"step": "Append"}, "a recipe is a list of steps: got dict"),
        (None, "a recipe is a list of steps: got NoneType"),
        (["Append"], "a step without a name"),
        ([{"value": 1}], "a step without a name"),
        ([{"step": "Apend"}], "unknown step: got 'Apend', wanted one of Append"),
        ([{"step": ["Append"]}], "unknown step"),
        (
            [{"step": "Append", "valeu": 1}],
            "unknown setting of Append: got 'valeu', wanted one of value, names, layers",
        ),
        ([{"step": "Append", "version": 1}], "unknown setting of Append: got 'version'"),
    ],
)
def test_recipes_that_cannot_be_read(rows: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.parse(rows, TABLE)


def test_a_step_is_recognised() -> None:
    assert isinstance(Append(), Step)
    assert not isinstance(object(), Step)


def test_a_measurement_is_json() -> None:
    taken = Measurement("latency", "ms", 1.0, 0.9, 1.1, 25, "measured")
    assert Measurement(**json.loads(json.dumps(taken.to_json()))) == taken
