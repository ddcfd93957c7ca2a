"""FILE.py:FACTORY: runs the named file alone; every fault is one line that names the user's own line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from laconic.errors import DataError, ModelError
from laconic.factory import load_factory


def write(folder: Path, text: str, name: str = "mine.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_the_factory_is_called(tmp_path: Path) -> None:
    path = write(tmp_path, "import pathlib\ndef make(): return 40 + 2, pathlib.Path(__file__).name\n")
    assert load_factory(f"{path}:make", DataError) == (42, "mine.py")


def test_classes_and_dataclasses_work(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "from __future__ import annotations\nfrom dataclasses import dataclass, KW_ONLY\n"
        "@dataclass\nclass Make:\n    _: KW_ONLY\n    size: int = 3\n",
    )
    assert load_factory(f"{path}:Make", ModelError).size == 3


def test_one_file_is_run_once_and_again_when_it_changed(tmp_path: Path) -> None:
    path = write(tmp_path, "class A: pass\ndef kind(): return A\ndef other(): return A\n")
    first = load_factory(f"{path}:kind", DataError)
    assert load_factory(f"{path}:other", DataError) is first
    write(tmp_path, "class A: pass\ndef kind(): return A\ndef extra(): return A\n")
    assert load_factory(f"{path}:kind", DataError) is not first


def test_nothing_is_written_beside_the_file(tmp_path: Path) -> None:
    load_factory(write(tmp_path, "def make(): return 1") + ":make", DataError)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "def make():\n    return 1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"mine.py:2: ZeroDivisionError: division by zero"):
        load_factory("mine.py:make", DataError)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def make():\n\n    raise ValueError('no\\nluck')\n", r"mine.py:3: ValueError: no luck$"),
        ("import json\ndef make():\n    return json.loads('{')\n", r"mine.py:3: JSONDecodeError: Expecting"),
        (
            "def inner():\n    return int('a')\ndef make():\n    return inner()\n",
            r"mine.py:2: ValueError: invalid literal",
        ),
        ("def make(size): return size\n", r"mine.py:\?: TypeError: make\(\) missing 1 required"),
        ("x = 1\nraise RuntimeError\ndef make(): pass\n", r"mine.py:2: RuntimeError: no message$"),
        ("import sys\ndef make():\n    sys.exit(1)\n", r"mine.py:3: SystemExit: 1$"),
        ("def make(:\n", r"mine.py:1: SyntaxError: invalid syntax$"),
        ("import not_installed_at_all\n", r"mine.py:1: ModuleNotFoundError: No module named 'not_installed_at_all'$"),
        ("def other(): pass\ndef more(): pass\n", r"no function 'make' in .*mine.py: wanted one of other, more$"),
        ("from json import loads\nclass Net: pass\ndef _hidden(): pass\n", r"wanted one of Net$"),
        ("make = 3\n", r"no function 'make' in .*: wanted a function$"),
    ],
)
def test_faults_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    before = set(sys.modules)
    with pytest.raises(ModelError, match=message) as caught:
        load_factory(write(tmp_path, text) + ":make", ModelError)
    assert "\n" not in str(caught.value)
    if "SyntaxError" in message or "RuntimeError" in message:
        assert not [name for name in set(sys.modules) - before if name.startswith("laconic_user_")]


def test_ctrl_c_stays_ctrl_c(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        load_factory(write(tmp_path, "raise KeyboardInterrupt\n") + ":make", DataError)


@pytest.mark.parametrize("spec", ["mine.py", "mine.py:", "mine:make", "mine.py:a b", ":make", ""])
def test_specs_that_cannot_be_read(spec: str) -> None:
    with pytest.raises(DataError, match=r"a factory that cannot be read: .*wanted FILE.py:FACTORY"):
        load_factory(spec, DataError)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"no such file: got 'nowhere.py'"):
        load_factory("nowhere.py:make", DataError)
