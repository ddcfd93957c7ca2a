"""The output folder: who may have it, and how it is given back."""

from __future__ import annotations

from pathlib import Path

import pytest

from laconic.errors import DataError, FolderError, LaconicError, TrialError
from laconic.ledger import Ledger
from laconic.story.folder import claim

BASELINE = {"row": "trial", "key": "0", "recipe": [], "error": None}
CANDIDATE = {"row": "trial", "key": "1", "recipe": [{"step": "Quantize"}], "error": None}
FAILED = {**CANDIDATE, "error": "it does not load"}


def work(path: Path, *rows: dict) -> None:
    """What a run leaves: a ledger with these rows, a deployed file, a log."""
    ledger = Ledger(path / "ledger.jsonl", {"model": "m"})
    for row in rows:
        ledger.append(row)
    (path / "trials" / "0.onnx").write_bytes(b"file")
    (path / "laconic.log").touch()


def everything(path: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(path)): p.read_bytes() if p.is_file() else None for p in path.rglob("*")}


@pytest.mark.parametrize("error", [DataError("wrong size"), KeyboardInterrupt(), LaconicError("fault"), ValueError()])
@pytest.mark.parametrize("there", ["nothing", "empty", "files of the user's nearby", "left by a killed run"])
def test_where_nothing_was_finished_all_is_as_before(there: str, error: BaseException, tmp_path: Path) -> None:
    out = tmp_path / "new" / "deep" / "out"
    if there == "empty":
        out.mkdir(parents=True)
    elif there == "files of the user's nearby":
        out.parent.mkdir(parents=True)
        (out.parent / "mine.txt").write_text("mine")
    elif there == "left by a killed run":
        (out / "trials").mkdir(parents=True)
        (out / "trials" / "part-1.onnx").touch()
        (out / "laconic.log").write_text("an earlier word")
    before = everything(tmp_path)
    folder = claim(out)
    assert folder.files.is_dir()
    work(out, BASELINE)
    folder.give_back(error)
    assert everything(tmp_path) == before


def test_a_finished_candidate_is_never_thrown_away(tmp_path: Path) -> None:
    folder = claim(tmp_path / "out")
    work(tmp_path / "out", BASELINE, CANDIDATE)
    before = everything(tmp_path)
    for error in (DataError("wrong size"), KeyboardInterrupt(), ValueError()):
        folder.give_back(error)
        assert everything(tmp_path) == before


def test_failures_are_kept_where_the_search_went_through_them(tmp_path: Path) -> None:
    folder = claim(tmp_path / "out")
    work(tmp_path / "out", BASELINE, FAILED)
    folder.give_back(TrialError("no candidate could be measured"))
    assert (tmp_path / "out" / "ledger.jsonl").exists()
    folder.give_back(DataError("this recipe is wrong"))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_held_a_ledger_is_left_as_it_is(tmp_path: Path) -> None:
    claim(tmp_path)
    work(tmp_path, BASELINE)
    before = everything(tmp_path)
    claim(tmp_path).give_back(DataError("another model"))
    assert everything(tmp_path) == before


def test_after_an_internal_fault_the_log_stays_and_the_folder_can_be_used_again(tmp_path: Path) -> None:
    folder = claim(tmp_path / "out")
    work(tmp_path / "out")
    (tmp_path / "out" / "laconic.log").write_text("Traceback ...")
    folder.give_back(LaconicError("ZeroDivisionError"))
    assert everything(tmp_path / "out") == {"laconic.log": b"Traceback ..."}
    assert claim(tmp_path / "out").files.is_dir()


@pytest.mark.parametrize("name", ["notes.txt", "manifest.json", ".hidden", "model.onnx"])
def test_a_folder_that_holds_something_else_is_refused_and_untouched(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    (tmp_path / "trials").mkdir()
    before = everything(tmp_path)
    with pytest.raises(
        FolderError, match=r"the output folder holds something else: got .*; give a new or an empty --out"
    ):
        claim(tmp_path)
    assert everything(tmp_path) == before


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(FolderError, match="--out is a file"):
        claim(tmp_path / "out")
    with pytest.raises(FolderError, match="the output folder cannot be made: "):
        claim(tmp_path / "out" / "below")
    assert (tmp_path / "out").read_text() == "mine"
