"""The ledger: finished rows survive anything; what is not a ledger, or not this ledger, is refused and left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.errors import FolderError
from laconic.ledger import SCHEMA, Ledger, read

HEADER = {"model": "abc", "data": "def", "libraries": {"torch": "2"}}
ROWS = [{"row": "trial", "key": f"k{i}", "value": i / 7, "text": "é\r\n"} for i in range(4)]


def written(path: Path, rows: list[Any] = ROWS) -> bytes:
    ledger = Ledger(path, HEADER)
    for row in rows:
        ledger.append(row)
    return path.read_bytes()


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    written(tmp_path / "l")
    again = Ledger(tmp_path / "l", HEADER)
    assert again.rows == [{"row": "header", "schema": SCHEMA, **HEADER}, *ROWS]
    assert read(tmp_path / "l") == again.rows
    assert list(again.of("trial")) == ROWS
    assert list(again.of("front")) == []


def test_find_gives_the_last_that_fits(tmp_path: Path) -> None:
    rows = [
        {"row": "latency", "key": "a", "n": 1},
        {"row": "latency", "key": "a", "n": 2},
        {"row": "trial", "key": "a"},
    ]
    written(tmp_path / "l", rows)
    ledger = Ledger(tmp_path / "l", HEADER)
    assert ledger.find("latency", key="a") == rows[1]
    assert ledger.find("latency", key="a", n=1) == rows[0]
    assert ledger.find("latency", key="b") is None
    assert ledger.find("front") is None


def test_a_row_is_whole_on_disk_when_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path / "l", HEADER)
    flushed: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append((tmp_path / "l").read_bytes()))
    ledger.append(ROWS[0])
    assert flushed == [(tmp_path / "l").read_bytes()], "flushed to the disk once, with the whole row"
    assert json.loads(flushed[0].splitlines()[-1]) == ROWS[0]


def test_rows_survive_a_killed_process(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal, sys\nfrom laconic.ledger import Ledger\n"
        "ledger = Ledger(pathlib.Path(sys.argv[1]), {'model': 'm'})\n"
        "ledger.append({'row': 'trial', 'key': 'a'})\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "l")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [row["row"] for row in Ledger(tmp_path / "l", {"model": "m"}).rows] == ["header", "trial"]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_cut_anywhere_it_loses_at_most_the_row_under_way(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "l"
    text = st.text(max_size=12)
    values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), text)
    fields = st.dictionaries(text, values, max_size=3)
    rows = [{**row, "row": "trial"} for row in data.draw(st.lists(fields, max_size=5))]
    whole = written(path, rows)
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    finished = whole[:cut].count(b"\n")
    ledger = Ledger(path, HEADER)
    assert ledger.rows == [{"row": "header", "schema": SCHEMA, **HEADER}, *rows][: max(finished, 1)]
    ledger.append({"row": "trial", "key": "next"})
    assert read(path) == ledger.rows
    assert Ledger(path, HEADER).rows == ledger.rows


def test_reading_repairs_nothing(tmp_path: Path) -> None:
    torn = written(tmp_path / "l") + b'{"row":"tri'
    (tmp_path / "l").write_bytes(torn)
    assert len(read(tmp_path / "l")) == 5
    assert (tmp_path / "l").read_bytes() == torn


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"notes of mine\n", "line 1 of .* is not a row of a ledger"),
        (b"notes of mine, without an end", "is not a ledger"),
        (b"\x00\xff\xfe", "is not a ledger"),
        (b"[1, 2]\n", "line 1 of .* is not a row"),
        (b'{"a": 1}\n', "line 1 of .* is not a row"),
        (b'{"row":"trial"}\n', "is not a ledger of laconic"),
        (b'{"row":"header"}\n', "is not a ledger of laconic"),
        (b'{"row":"header","schema":1,"model":"abc","data":"def","libraries":{"torch":"2"}}\n{"x\n', "line 2 of"),
    ],
)
def test_a_foreign_file_is_refused_and_left_alone(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "l").write_bytes(content)
    with pytest.raises(FolderError, match=message):
        Ledger(tmp_path / "l", HEADER)
    assert (tmp_path / "l").read_bytes() == content


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    row = {"row": "header", "schema": SCHEMA + 1, **HEADER}
    (tmp_path / "l").write_text(json.dumps(row) + "\n")
    with pytest.raises(FolderError, match=rf"newer laconic: got schema {SCHEMA + 1}, wanted at most {SCHEMA}"):
        Ledger(tmp_path / "l", HEADER)


@pytest.mark.parametrize("name", list(HEADER))
def test_a_ledger_of_another_search_is_refused(tmp_path: Path, name: str) -> None:
    before = written(tmp_path / "l")
    with pytest.raises(FolderError, match=f"belongs to another {name}"):
        Ledger(tmp_path / "l", {**HEADER, name: "other"})
    assert (tmp_path / "l").read_bytes() == before


def test_what_is_not_json_is_not_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l", HEADER)
    before = (tmp_path / "l").read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        ledger.append({"row": "trial", "value": float("nan")})
    assert (tmp_path / "l").read_bytes() == before
    assert len(ledger.rows) == 1
