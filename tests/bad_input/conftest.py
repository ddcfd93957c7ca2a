"""What every refusal has in common: one line, exit code 2, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stories import inline, laconic, shop

__all__ = ["inline"]

Refused = Callable[..., str]


@pytest.fixture
def refused(inline: None, tmp_path: Path) -> Refused:
    """Run ``shrink MODEL --data DATA --out tmp_path/new/out OPTIONS``, see that it is refused, and return the line.

    A ``complaint`` may come after the preflight has said what it found of the original.
    """

    def run(*options: object, model: object = "", data: object = "digits") -> str:
        out = tmp_path / "new" / "out"
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        given = ("--budget", "1trials", "--max-drop", "5%", "--minimize", "size", "--json", *options)
        said = laconic("shrink", model or shop("trained"), "--data", data, "--out", out, *given)
        assert said.code == 2, said.err
        assert said.out == ""
        *others, line = said.err.splitlines()
        assert line.startswith("laconic: "), said.err
        assert not any(word.startswith("laconic: ") or "Traceback" in word for word in others), said.err
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before, "something was left behind"
        return line.removeprefix("laconic: ")

    return run
