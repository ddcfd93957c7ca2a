"""The folder, the disk, the libraries: what is wrong around a run, in one line, with nothing half-written."""

from __future__ import annotations

import collections
import json
import sys
from pathlib import Path

import pytest

from tests.bad_input.conftest import Refused
from tests.stories import finish, inlined, laconic, shop, sized, start, zoo

QUICK = ("--budget", "1trials", "--max-drop", "5%", "--minimize", "size", "--no-train", "--json")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ----------------------------------------------------------------------------------------------------------- the folder


def test_an_output_folder_that_holds_something_else(inline: None, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    said = laconic("shrink", shop("trained"), "--data", "digits", "--out", tmp_path, *QUICK)
    assert (said.code, said.out) == (2, "")
    assert f"the output folder holds something else: got {tmp_path}; give a new or an empty --out" in said.complaint
    assert contents(tmp_path) == {"thesis.tex": b"mine"}


def test_an_output_folder_that_is_a_file(inline: None, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    for out, words in (
        (tmp_path / "out", "--out is a file"),
        (tmp_path / "out" / "x", "the output folder cannot be made"),
    ):
        said = laconic("shrink", shop("trained"), "--data", "digits", "--out", out, *QUICK)
        assert said.code == 2
        assert words in said.complaint
    assert contents(tmp_path) == {"out": b"mine"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": shop("five_classes")}, "belongs to another model"),
        ({"data": shop("others")}, "belongs to another data"),
        ({"--seed": "1"}, "belongs to another data"),
    ],
    ids=["model", "data", "seed"],
)
def test_a_ledger_of_something_else(inline: None, change: dict[str, str], words: str, tmp_path: Path) -> None:
    out, _ = sized().copy(tmp_path / "out")
    before = contents(out)
    seed = ["--seed", change["--seed"]] if "--seed" in change else []
    model, data = change.get("model", shop("trained")), change.get("data", "digits")
    said = laconic("shrink", model, "--data", data, "--out", out, *QUICK, *seed)
    assert (said.code, said.out) == (2, "")
    assert words in said.complaint
    assert "give another --out, or the model, data, --seed and --no-train that it was made with" in said.complaint
    assert contents(out) == before


def test_a_ledger_that_is_none(inline: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "ledger.jsonl").write_text('{"my": "notes"}\n')
    said = laconic("shrink", shop("trained"), "--data", "digits", "--out", out, *QUICK)
    assert said.code == 2
    assert "line 1 of" in said.complaint
    assert "is not a row of a ledger; give another --out" in said.complaint
    assert contents(out) == {"ledger.jsonl": b'{"my": "notes"}\n'}


def test_a_refusal_in_a_folder_with_a_package_leaves_the_package(inline: None, tmp_path: Path) -> None:
    out, command = sized().copy(tmp_path / "out")
    before = contents(out)
    said = laconic(*command, "--expect-score", "50%")
    assert said.code == 2
    assert contents(out) == before


# ------------------------------------------------------------------------------------------------- disk, memory, faults


def test_not_enough_disk(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    said = refused()
    assert "not enough disk: got 1 MB free, wanted 6 MB; give another --out" in said


def test_a_disk_that_fills_up_keeps_what_was_finished(
    inline: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from laconic.ledger import Ledger

    append = Ledger.append

    def full(self: Ledger, row: dict) -> None:
        if row["row"] == "front":
            raise OSError(28, "No space left on device")
        append(self, row)

    out = tmp_path / "out"
    command = ("shrink", shop("trained"), "--data", "digits", "--out", out, *QUICK)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "append", full)
        said = laconic(*command)
    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines()[-1] == "laconic: No space left on device; what was finished is kept"
    rows = [json.loads(line)["row"] for line in (out / "ledger.jsonl").read_text().splitlines()]
    assert rows.count("trial") == 2
    again = laconic(*command)
    assert again.code == 0, again.err
    rows = [json.loads(line)["row"] for line in (out / "ledger.jsonl").read_text().splitlines()]
    assert rows.count("trial") == 2


def test_an_internal_fault_names_the_log_and_the_folder_stays_usable(tmp_path: Path) -> None:
    """In the real worker: a fault that no code of laconic foresees."""
    path, out = tmp_path / "odd.py", tmp_path / "out"
    path.write_text(
        "import numpy as np\nfrom laconic.data import splits\n\n\ndef data():\n"
        "    splits.divide = None\n    return np.zeros((60, 1, 8, 8), np.float32)\n"
    )
    said = laconic("shrink", shop("trained"), "--data", f"{path}:data", "--out", out, *QUICK)
    assert said.code == 1
    assert said.complaint.startswith("internal error: TypeError: 'NoneType' object is not callable; traceback in ")
    log = Path(said.complaint.rpartition(" in ")[2])
    assert log == out / "laconic.log"
    assert "Traceback" in log.read_text()
    assert [p.name for p in out.iterdir()] == ["laconic.log"]
    with inlined():
        again = laconic("shrink", shop("trained"), "--data", "digits", "--out", out, *QUICK)
    assert again.code == 0, again.err


def test_bad_input_by_the_command_itself(tmp_path: Path) -> None:
    """In processes of their own: the refusal comes from the worker."""
    out = tmp_path / "a" / "b"
    said = finish(start("shrink", shop("broken"), "--data", "digits", "--out", out, "--json", cwd=tmp_path))
    assert (said.code, said.out) == (2, "")
    assert said.complaint.startswith("the weights are not finite: tensor fc.weight")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------ missing extras


@pytest.mark.parametrize(
    ("module", "options", "words"),
    [
        ("openvino", {"target": "openvino"}, "openvino is not installed; pip install 'laconic[openvino]'"),
        (
            "torchvision",
            {"model": "torchvision:resnet18"},
            "torchvision is not installed; pip install 'laconic[torchvision]'",
        ),
        ("timm", {"model": "timm:resnet18"}, "timm is not installed; pip install 'laconic[timm]'"),
        ("pyarrow", {"data": "x.parquet", "model": zoo()}, "pyarrow is not installed; pip install 'laconic[parquet]'"),
    ],
)
def test_a_missing_extra_is_named(
    refused: Refused, module: str, options: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "x.parquet").touch()
    data = str(tmp_path / "x.parquet") if "data" in options else "digits"
    target = ("--target", options["target"]) if "target" in options else ()
    assert words in refused(*target, model=options.get("model", ""), data=data)
