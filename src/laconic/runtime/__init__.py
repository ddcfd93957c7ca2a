"""Where a model runs: one runtime per file, listed in :data:`RUNTIMES`, each with the same names.

``traits(target)`` says what is fast; ``deploy(model, example, path, target) -> facts`` writes the file (the only place
that exports); ``open_file(path, target) -> Session`` opens it as a :data:`~laconic.core.Predictor`;
``layer_times(path, target, inputs)`` is the runtime's own profile; ``SUFFIX`` and ``DEVICES`` are the file's ending and
the devices it runs on. A runtime whose files are made from another's too, and where it is not installed, is
:class:`Translating`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import nn

from laconic.core import Arrays, Facts, Target, Traits
from laconic.errors import TargetError
from laconic.runtime.session import Session

RUNTIMES = {
    "executorch": "laconic.runtime.executorch",
    "litert": "laconic.runtime.litert",
    "onnxruntime": "laconic.runtime.onnxruntime",
    "openvino": "laconic.runtime.openvino",
    "tensorrt": "laconic.runtime.tensorrt",
    "torch": "laconic.runtime.torch",
}


class Runtime(Protocol):
    """What a runtime's file offers."""

    SUFFIX: str
    DEVICES: tuple[str, ...]

    def traits(self, target: Target) -> Traits: ...

    def deploy(self, model: nn.Module, example: Arrays, path: Path, target: Target) -> Facts: ...

    def open_file(self, path: Path, target: Target) -> Session: ...

    def layer_times(self, path: Path, target: Target, inputs: Arrays) -> dict[str, float]: ...


@runtime_checkable
class Translating(Protocol):
    """``translate(path, out)`` writes another runtime's file in its own form; ``simulate(path, target)`` opens such a
    file without the runtime, and ``SIMULATED`` says what that is worth."""

    SIMULATED: str

    def translate(self, path: Path, out: Path) -> dict[str, int]: ...

    def simulate(self, path: Path, target: Target) -> Session: ...


def runtime_of(target: Target) -> Runtime:
    """The runtime that ``target`` names; raises :class:`TargetError` for an unknown one or a device it lacks."""
    if target.runtime not in RUNTIMES:
        raise TargetError("unknown runtime", got=repr(target.runtime), wanted=f"one of {', '.join(RUNTIMES)}")
    runtime = named(target.runtime)
    if target.device not in runtime.DEVICES:
        wanted = " or ".join(runtime.DEVICES)
        raise TargetError(f"a device that {target.runtime} does not have", got=repr(target.device), wanted=wanted)
    return runtime


def named(name: str) -> Runtime:
    """The runtime called ``name``, one of :data:`RUNTIMES`."""
    runtime: Runtime = importlib.import_module(RUNTIMES[name])
    return runtime
