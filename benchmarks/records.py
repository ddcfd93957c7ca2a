"""Run records: what a benchmark found, on which machine, with which versions; and where its data lie."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from laconic import machine
from laconic.story.evaluate import versions

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(__file__).resolve().parent / "records"
DATA = Path(os.environ.get("LACONIC_DATA", ROOT.parent / "shared" / "data"))


T = TypeVar("T")


class Skipped(Exception):  # noqa: N818 - it is no error
    """A benchmark cannot run here; the reason is its message."""


def data(name: str) -> Path:
    """A file or folder of the public data; skips the benchmark, saying so, where it is absent."""
    path = DATA / name
    if not path.exists():
        raise Skipped(f"{name} is not in $LACONIC_DATA ({DATA})")
    return path


def opened(
    builders: Mapping[str, Callable[[], T]], words: tuple[str, ...], skipped: dict[str, str]
) -> Iterator[tuple[str, T]]:
    """What the builders make whose names hold one of ``words``, all without words; of one that is skipped, the
    reason."""
    for name, build in builders.items():
        if words and not any(word in name for word in words):
            continue
        try:
            made = build()
        except Skipped as reason:
            skipped[name] = str(reason)
            print(f"{name}: skipped: {reason}", flush=True)
        else:
            yield name, made


def write(folder: Path, name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Keep a run record as ``NAME.json``."""
    record = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine.describe(),
        "libraries": versions(),
        **found,
    }
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def read(name: str) -> dict[str, Any] | None:
    """A run record, or None if the benchmark was not run yet."""
    path = FOLDER / f"{name}.json"
    record: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return record


def laconic(*arguments: str | Path) -> dict[str, Any]:
    """Run a command of laconic as a user would, with ``--json``; its object. What it says meanwhile is passed on."""
    command = [sys.executable, "-m", "laconic.cli", *map(str, arguments), "--json"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode not in (0, 3):
        raise RuntimeError(f"{' '.join(command)} ended with {result.returncode}")
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    del found["package"]  # where it lay on this machine
    return found


def progress(name: str) -> Callable[[str, float], None]:
    """What a step or a trainer tells its progress to: said once in ten seconds."""
    last = time.monotonic()

    def say(text: str, fraction: float) -> None:
        nonlocal last
        if time.monotonic() - last > 10:
            last = time.monotonic()
            print(f"{name}: {fraction:.1%} {text}", flush=True)

    return say
