"""laconic: the smallest or fastest model above an accuracy floor, on your runtime, with the evidence.

>>> import laconic
>>> laconic.Goal.parse(max_drop="1%", budget="5m").max_drop
0.01

``laconic.shrink(model, task, goal)`` is the verb; a task is made by ``laconic.from_arrays``, ``laconic.from_loaders``
or ``laconic.load_task``. Importing laconic loads neither torch nor a runtime: they come with the first use.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# ONNX Runtime (from 1.29) reports to its maker what it runs unless this is set before it is loaded
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from laconic.api import load_model, shrink
    from laconic.core import Preprocess, Recipe, Target, Task
    from laconic.data import from_arrays, from_loaders, from_splits
    from laconic.data import load as load_task
    from laconic.goal import Budget, Goal, Limit

_HOMES = {
    **dict.fromkeys(("Preprocess", "Recipe", "Target", "Task"), "laconic.core"),
    **dict.fromkeys(("Budget", "Goal", "Limit"), "laconic.goal"),
    **dict.fromkeys(("from_arrays", "from_loaders", "from_splits"), "laconic.data"),
    **dict.fromkeys(("load_model", "shrink"), "laconic.api"),
}

__all__ = [
    "Budget",
    "Goal",
    "Limit",
    "Preprocess",
    "Recipe",
    "Target",
    "Task",
    "__version__",
    "from_arrays",
    "from_loaders",
    "from_splits",
    "load_model",
    "load_task",
    "shrink",
]


def __getattr__(name: str) -> Any:
    if name == "load_task":
        return importlib.import_module("laconic.data").load
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'laconic' has no attribute {name!r}")
