"""Every error: one line, its exit code, its place in the tree of the docstring, and back from another process."""

from __future__ import annotations

import pickle
import re

import cloudpickle
import pytest

from laconic import errors
from laconic.errors import DataError, InputError, LaconicError, MissingExtraError, TrialError

KINDS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]


def make(kind: type[LaconicError]) -> LaconicError:
    return kind("numpy", "all") if kind is MissingExtraError else kind("something is wrong")  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", KINDS)
def test_the_tree_in_the_docstring_is_the_tree(kind: type[LaconicError]) -> None:
    assert errors.__doc__ is not None
    line = next(line for line in errors.__doc__.splitlines() if re.search(rf"\b{kind.__name__}\b", line))
    depth = len(line.split(kind.__name__)[0].replace("    ", "   ")) // 4
    assert depth == len([k for k in kind.__mro__ if issubclass(k, LaconicError)]) - 1 or kind is LaconicError
    code = re.search(rf"{kind.__name__} +(\d)", line)
    if code:
        assert kind.exit_code == int(code[1])


@pytest.mark.parametrize("kind", KINDS)
def test_exit_codes(kind: type[LaconicError]) -> None:
    assert kind.exit_code == (2 if issubclass(kind, InputError) else 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("module", [pickle, cloudpickle])
def test_errors_travel_between_processes(kind: type[LaconicError], module: object) -> None:
    error = make(kind)
    again = pickle.loads(module.dumps(error))  # type: ignore[attr-defined]
    assert type(again) is kind
    assert str(again) == str(error)
    assert again.exit_code == error.exit_code


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no labels"),
        ({"got": 0}, "no labels: got 0"),
        ({"wanted": "3"}, "no labels: wanted 3"),
        ({"got": "a\n  b", "wanted": (1, 2), "fix": "mend it"}, "no labels: got a b, wanted (1, 2); mend it"),
        ({"fix": "mend it"}, "no labels; mend it"),
    ],
)
def test_input_errors_are_one_line(options: dict[str, object], message: str) -> None:
    assert str(DataError("no labels", **options)) == message  # type: ignore[arg-type]


def test_a_missing_extra_names_the_command() -> None:
    assert str(MissingExtraError("openvino", "all")) == "openvino is not installed; pip install 'laconic[all]'"


def test_a_failed_trial_is_not_bad_input() -> None:
    assert not issubclass(TrialError, InputError)
