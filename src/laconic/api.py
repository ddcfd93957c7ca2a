"""laconic from Python: the same story as the command line, on models and data that are already in memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from laconic.core import Recipe, Target, Task
from laconic.goal import Goal
from laconic.models import load as load_model
from laconic.models.loaded import LoadedModel, ready
from laconic.story.reporter import Reporter
from laconic.story.shrink import Result, Wish
from laconic.story.shrink import shrink as run

__all__ = ["load_model", "shrink"]


def shrink(  # noqa: PLR0913 - the vocabulary of the command line
    model: nn.Module | LoadedModel,
    task: Task,
    goal: Goal | None = None,
    *,
    out: str | Path,
    target: str = "onnxruntime:cpu",
    keep: Sequence[str] = (),
    seed: int = 0,
    recipe: Recipe | None = None,
    reporter: Reporter | None = None,
) -> Result:
    """Find the smallest or fastest form of ``model`` above the goal's floor on ``target``, and pack it into ``out``.

    ``model`` is left as it is. The same ``out`` continues an earlier search. ``keep``: globs of layers to leave alone.
    ``recipe``: apply just this, without a search. The work is done in a process of its own, to which model and task are
    handed by cloudpickle. Raises :class:`laconic.errors.InputError` for what can be mended; see
    :attr:`Result.certified` for whether the result is proved.
    """
    loaded = model if isinstance(model, LoadedModel) else LoadedModel(ready(copy.deepcopy(model)), "a torch.nn.Module")
    wish = Wish(
        goal=goal or Goal(),
        target=Target.parse(target),
        out=Path(out),
        keep=tuple(keep),
        seed=seed,
        recipe=recipe,
        reporter=reporter or Reporter(),
    )
    return run(partial(_given, loaded, task), wish)


def _given(loaded: LoadedModel, task: Task, progress: Any) -> tuple[LoadedModel, Task]:
    return loaded, task
