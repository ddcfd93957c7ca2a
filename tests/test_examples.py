"""The examples run as they stand, and say what they did."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def test_there_are_some() -> None:
    assert {path.name for path in EXAMPLES} >= {"from_python.py", "onnx_file.py"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs_and_its_own_assertions_hold(path: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(path), str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "certified" in run.stdout
    assert "Traceback" not in run.stderr
    assert [found.name for found in tmp_path.iterdir()] == ["out"]
    if path.name == "from_python.py":  # the search trains where it may
        rows = map(json.loads, (tmp_path / "out" / "ledger.jsonl").read_text().splitlines())
        tried = {step["step"] for row in rows if row["row"] == "trial" for step in row["recipe"]}
        assert tried >= {"LSQ", "EPR"}
