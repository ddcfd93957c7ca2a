"""Stories that are stopped: Ctrl-C ends them well, a kill loses nothing that was finished."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from laconic.pack import package
from tests.stories import finish, home, rows_of, sized, start

PATIENCE_S = 90.0


def wait_for(path: Path, process: subprocess.Popen[str], lines: int = 0) -> None:
    """Until ``path`` is there with so many lines, or the process has ended."""
    began = time.monotonic()
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert time.monotonic() - began < PATIENCE_S, f"{path} did not come"
        if process.poll() is not None:
            return
        time.sleep(0.05)


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=20)
    return not alive


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """The command of the package that all tests share, into a folder of its own."""
    home()
    return [str(tmp_path / "out") if word == str(sized().out) else word for word in sized().command]


def test_killed_at_any_moment_it_loses_and_repeats_nothing(command: list[str], tmp_path: Path) -> None:
    ledger, moments = tmp_path / "out" / "ledger.jsonl", random.Random(0)
    finished: list[bytes] = []
    for lines in (2, 6, 11):  # the original; some trials; the probes, or what comes after them
        process = start(*command, TMPDIR=str(tmp_path))
        wait_for(ledger, process, max(lines, len(finished) + 1))
        time.sleep(moments.uniform(0, 0.7))
        workers = children(process)
        process.kill()
        process.communicate()
        assert workers, "killed before it worked"
        assert gone(workers), "the worker outlived its parent"
        found = ledger.read_bytes()
        assert found.split(b"\n")[: len(finished)] == finished  # nothing was lost
        finished = found[: found.rfind(b"\n")].split(b"\n")
    said = finish(start(*command, TMPDIR=str(tmp_path)))
    assert said.code == 0, said.err
    assert ledger.read_bytes().split(b"\n")[: len(finished)] == finished
    rows = rows_of(tmp_path / "out")
    for kind in ("header", "described", "trial", "probe", "holdout"):
        keys = [row.get("key") for row in rows if row["row"] == kind]
        assert len(keys) == len(set(keys)), f"a {kind} twice"
    # the winner of the story that nobody interrupted
    assert said.json["best"]["recipe"] == sized().said.json["best"]["recipe"]
    assert package.sha256(tmp_path / "out" / "model.lac") == sized().manifest["file"]["sha256"]
    assert said.json["certificate"] == sized().said.json["certificate"]


def test_ctrl_c_certifies_what_there_is(command: list[str], tmp_path: Path) -> None:
    more = ["60trials" if word == "4trials" else word for word in command]
    process = start(*more)
    wait_for(tmp_path / "out" / "manifest.json", process)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does it: to all processes of the group
    workers = children(process)
    said = finish(process)
    assert said.code in (0, 3)
    assert "Traceback" not in said.err
    assert "stopped: certifying the best so far" in said.err
    assert said.json["status"] == ("certified" if said.code == 0 else "uncertified")
    assert said.json["trials"] < 60
    assert gone(workers)
    made = package.read(tmp_path / "out")
    assert made.manifest["certificate"] is not None
    assert [row["row"] for row in rows_of(tmp_path / "out")].count("holdout") == 1
    assert made.manifest["status"] == "certified"  # integers alone pass here


def test_ctrl_c_before_there_is_anything_leaves_nothing(command: list[str], tmp_path: Path) -> None:
    process = start(*command)
    wait_for(tmp_path / "out" / "laconic.log", process)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    said = finish(process)
    assert (said.code, said.out) == (130, "")
    assert said.complaint == "interrupted"
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_killed_before_its_ledger_can_be_repeated(command: list[str], tmp_path: Path) -> None:
    from tests.stories import inlined, laconic

    (tmp_path / "out" / "trials").mkdir(parents=True)
    (tmp_path / "out" / "laconic.log").touch()
    (tmp_path / "out" / "trials" / "part-0123.onnx").touch()
    with inlined():
        said = laconic(*["1trials" if word == "4trials" else word for word in command])
    assert said.code == 0, said.err
