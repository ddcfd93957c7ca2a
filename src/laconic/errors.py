"""Every error laconic raises on purpose.

The tree, with the exit code of the command line::

    LaconicError                1   something laconic ran into
    ├── InputError              2   the user can mend it: what was given, what was wanted, how to mend it
    │   ├── ModelError              the model, its weights, its file
    │   ├── DataError               the data set, its labels, its pre-processing
    │   ├── RecipeError             a recipe, a step, a step's setting
    │   ├── TargetError             a runtime, its options, an operator it lacks
    │   ├── GoalError               a floor, limit or budget; a floor that the model itself does not meet
    │   ├── FolderError             the output folder or its ledger
    │   ├── ResourceError           disk, memory
    │   └── MissingExtraError       an optional dependency that is not installed
    └── TrialError              1   one candidate failed; the search writes a row and goes on
        └── DeployError             the deployed file does not load, or does not agree with the model

Anything else that escapes is an internal fault: the command line keeps its traceback in a log file and names it.
"""

from __future__ import annotations

from typing import Any


class LaconicError(Exception):
    """Base of every error raised on purpose; it pickles as its kind and its message."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), str(self))


def _again(kind: type[LaconicError], message: str) -> LaconicError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    return error


class InputError(LaconicError):
    """Bad input that the user can mend; the message is one line.

    >>> str(DataError("label outside the model's classes", got="12 in row 40", wanted="0..9", fix="relabel that row"))
    "label outside the model's classes: got 12 in row 40, wanted 0..9; relabel that row"
    """

    exit_code = 2

    def __init__(self, what: str, *, got: object = None, wanted: object = None, fix: str | None = None) -> None:
        facts = [f"{word} {value}" for word, value in (("got", got), ("wanted", wanted)) if value is not None]
        message = what + (": " + ", ".join(facts) if facts else "") + (f"; {fix}" if fix else "")
        super().__init__(" ".join(message.split()))


class ModelError(InputError):
    """The model, its weights or its file."""


class DataError(InputError):
    """The data set, its labels or its pre-processing."""


class RecipeError(InputError):
    """A recipe, a step or one of its settings."""


class TargetError(InputError):
    """A runtime, its options, or an operator that it lacks."""


class GoalError(InputError):
    """A floor, limit or budget that cannot be used."""


class FolderError(InputError):
    """The output folder or the ledger in it."""


class ResourceError(InputError):
    """Not enough disk or memory."""


class MissingExtraError(InputError):
    """An optional dependency is not installed; the message names the extra."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"{module} is not installed", fix=f"pip install 'laconic[{extra}]'")


class TrialError(LaconicError):
    """One candidate failed: it becomes a row of the ledger and the search goes on."""


class DeployError(TrialError):
    """The deployed file does not load, or its outputs differ from the model's."""
