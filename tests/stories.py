"""A small trained network, data for it, and the command line: what the tests of whole stories share.

Everything is made once per session, in a folder of its own. :func:`laconic` runs a command in this process;
:class:`Inline` does the worker's work here too, which saves the seconds that a process of its own takes to load torch.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FACTORIES = '''
"""Models and data of a user's own."""
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn
from laconic.models.zoo.digits_cnn import DigitsCNN

HERE = Path(__file__).parent


def trained():
    model = DigitsCNN(16)
    model.load_state_dict(safetensors.torch.load_file(HERE / "net.safetensors"))
    return model


def guessing():
    torch.manual_seed(0)
    return DigitsCNN(4)


def broken():
    model = trained()
    model.fc.weight.data[0, 0] = float("nan")
    return model


def no_model():
    return {"weights": 3}


def raising():
    raise ValueError("the weights are on the other disk\\nmore")


def five_classes():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))


def map_of_classes():
    torch.manual_seed(0)
    return nn.Conv2d(1, 10, 3)


def coloured():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10))


def larger():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(400, 10))


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = trained()


class Twice(Wrapped):
    def forward(self, x):
        y = self.net(x)
        return y, y


class Branching(Wrapped):
    def forward(self, x):
        return self.net(x) if x.sum().item() > 0 else self.net(-x)


class Singular(Wrapped):
    def forward(self, x):
        u, s, v = torch.linalg.svd(x)
        return self.net(u @ torch.diag_embed(s) @ v)


class Sum(Wrapped):
    """Two pictures in, the class of their sum out."""

    def forward(self, left, right):
        return self.net(left + right)


class Crashing(Wrapped):
    """A fault that shows only when the model is counted."""

    def forward(self, x):
        return self.net(x)


def digits():
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.images[:, None] / 16).astype(np.float32), found.target


def unlabelled():
    return digits()[0]


def halves():
    x, y = digits()
    return {"left": x * 0.25, "right": x * 0.75}, y


def others():
    """Digits that the splits of ``digits`` have not seen: shifted by a pixel."""
    x, y = digits()
    return np.roll(x, 1, axis=2)[:600], y[:600]


def some(n=60, shape=(1, 8, 8), classes=10):
    random = np.random.default_rng(0)
    return random.normal(size=(n, *shape)).astype(np.float32), random.integers(0, classes, n)


def empty():
    return some(0)


def few():
    return some(4)


def twelve_classes():
    return some(classes=12)


def negative():
    x, y = some()
    return x, y - 1


def wide():
    return some(shape=(1, 9, 9))


def colours():
    return some(shape=(3, 8, 8))


def not_finite():
    x, y = some()
    x[3, 0, 0, 0] = np.nan
    return x, y


def whole_numbers():
    x, y = some()
    return (x * 10).astype(np.int64), y
'''


@functools.cache
def home() -> Path:
    """The folder of this session: ``shop.py`` with factories, ``net.safetensors``, ``net.onnx``."""
    folder = Path(tempfile.mkdtemp(prefix="laconic-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "shop.py").write_text(FACTORIES)
    _train(folder / "net.safetensors")
    return folder


def shop(name: str) -> str:
    """A factory of :data:`FACTORIES`, as the command line names it."""
    return f"{home() / 'shop.py'}:{name}"


def zoo() -> str:
    """The trained network by its name in the zoo, which knows its pre-processing."""
    return f"zoo:digits-cnn-16@{home() / 'net.safetensors'}"


def _train(path: Path) -> None:
    """Train the digits network of width 16 for a second or two: 98 %."""
    import safetensors.torch

    from laconic.data import load
    from laconic.models.loaded import seeded
    from laconic.models.zoo.digits_cnn import DigitsCNN
    from laconic.steps.train.fit import Schedule, fit

    task, model = load("digits", preprocess=None), seeded(lambda: DigitsCNN(16))
    schedule = Schedule(epochs=10, lr=3e-3, batch=64, weight_decay=1e-4, distill=0.0, temperature=4.0)
    fit(model, task.train, task.loss, None, schedule, 0, lambda text, fraction: None)
    safetensors.torch.save_file(model.state_dict(), path)


@functools.cache
def onnx_file() -> Path:
    """The trained network as an ONNX file: the original that some package deployed."""
    path = home() / "net.onnx"
    shutil.copy(sized().out / "baseline.onnx", path)
    return path


@functools.cache
def pictures() -> Path:
    """600 digits as pictures, a folder per class, one of them corrupt."""
    from PIL import Image
    from sklearn.datasets import load_digits

    found, folder = load_digits(), home() / "pictures"
    for i in range(600):
        place = folder / str(found.target[i])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((found.images[i] * 15.9375).round().astype("uint8")).save(place / f"{i:04d}.png")
    (folder / "3" / "0003.png").write_bytes(b"\x89PNG and nothing more")
    return folder


# --------------------------------------------------------------------------------------------------------- the command


@dataclass(frozen=True)
class Said:
    """What a command printed and gave back."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on standard output."""
        assert self.out.count("\n") == 1, f"more than one line: {self.out}\n{self.err}"
        return json.loads(self.out)

    @property
    def complaint(self) -> str:
        """The one line on standard error."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("laconic: ")
        return lines[0].removeprefix("laconic: ")


def laconic(*arguments: object) -> Said:
    """Run a command of the command line in this process."""
    from laconic.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Said(code, out.getvalue(), err.getvalue())


def start(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    """Start the command line in a process, and a group, of its own."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored, and that is inherited
    return subprocess.Popen(
        [sys.executable, "-m", "laconic.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 120) -> Said:
    """Wait for a process that was started."""
    out, err = process.communicate(timeout=seconds)
    return Said(process.returncode, out, err)


class Inline:
    """A worker without a process: its work is done here, at once."""

    def __init__(self, factory: Callable[[Any], Any], log: Path, memory_bytes: int | None = None) -> None:
        self._factory, self._subject = factory, None

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def call(self, method: str, *args: Any, progress: Any = None, seconds: float | None = None) -> Any:
        if self._subject is None:
            self._subject = self._factory(progress or (lambda text, fraction: None))
        return getattr(self._subject, method)(*args)

    def stop(self) -> None:
        self._subject = None


@contextlib.contextmanager
def inlined() -> Iterator[None]:
    """Stories are told in this process, on the threads that it has; a busy machine is not waited for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("laconic.story.shrink.Worker", Inline)
        patch.setattr("laconic.story.shrink._FINAL_ATTEMPTS", 1)
        patch.setattr("laconic.measure.latency._ATTEMPTS", 1)
        patch.setattr("torch.set_num_threads", lambda n: None)
        yield


@pytest.fixture
def inline() -> Iterator[None]:
    """:func:`inlined` for a test."""
    with inlined():
        yield


# --------------------------------------------------------------------------------------------------------- the packages

SIZED = ("--minimize", "size", "--max-drop", "3%", "--budget", "4trials", "--no-train")
"""Options with which the same package comes out on every machine, however busy."""


@dataclass(frozen=True)
class Made:
    """A package, the command that made it, and what that said."""

    out: Path
    command: tuple[str, ...]
    said: Said
    cwd: Path
    scratch: Path

    @property
    def manifest(self) -> Any:
        return json.loads((self.out / "manifest.json").read_text())

    @property
    def rows(self) -> list[Any]:
        return rows_of(self.out)

    def copy(self, path: Path) -> tuple[Path, list[str]]:
        """A copy of the package, and the command that would continue it."""
        shutil.copytree(self.out, path)
        return path, [str(path) if word == str(self.out) else word for word in self.command]


def rows_of(out: Path) -> list[Any]:
    return [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]


@functools.cache
def sized() -> Made:
    """The trained network made small, by the real command in a process of its own."""
    out, cwd, scratch = home() / "sized", home() / "cwd", home() / "scratch"
    cwd.mkdir()
    scratch.mkdir()
    command = ("shrink", shop("trained"), "--data", "digits", "--out", str(out), *SIZED, "--json")
    return Made(out, command, finish(start(*command, cwd=cwd, TMPDIR=str(scratch))), cwd, scratch)


@functools.cache
def pictured() -> Path:
    """A package that knows pictures: made with the zoo's pre-processing from a folder in which one is corrupt."""
    out = home() / "pictured"
    with inlined():
        options = ("--minimize", "size", "--max-drop", "15%", "--budget", "1trials", "--no-train")
        said = laconic("shrink", zoo(), "--data", pictures(), "--out", out, *options)
    assert said.code == 0, said.err
    assert "1 picture was left out: 3/0003.png" in said.err
    return out
