"""The ledger: every finished row of a search, appended to one JSONL file, never changed.

The first row says which model, data and versions the ledger belongs to. A row is finished once its line ends: a line
without an end was being written when the process died, and is dropped when the ledger is opened again. Each row is
flushed to the disk before the search goes on.

Rows: ``header``; ``described`` (what was known before anything was measured: with it the ledger alone tells the whole
search again); ``probe`` (a sensitivity); ``profile`` (the runtime's own, per layer); ``trial``; ``latency`` (a trial's
speed, with the machine it belongs to); ``package`` (when there first was one); ``front`` (the candidates and their
order, before the holdout is opened); ``holdout`` (what it said).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from laconic.core import JsonObject
from laconic.errors import FolderError

SCHEMA = 1
_START = b'{"row":"header"'


class Ledger:
    """Rows in memory and on disk; opened with the header that it must carry."""

    def __init__(self, path: Path, header: JsonObject) -> None:
        """Open or create; raises :class:`FolderError` for a ledger of another model, of other data or of a newer
        schema."""
        self.path = path
        self.rows: list[JsonObject] = []
        if path.exists():
            self.rows = _finished_rows(path)
        if self.rows:
            _check(self.rows[0], header, path)
        else:
            self.append({"row": "header", "schema": SCHEMA, **header})

    def append(self, row: JsonObject) -> None:
        """Add a finished row: on disk before this returns."""
        line = json.dumps(row, allow_nan=False, separators=(",", ":")) + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)

    def of(self, kind: str) -> Iterator[JsonObject]:
        """The rows of one kind, in order."""
        return (row for row in self.rows if row["row"] == kind)

    def find(self, kind: str, **fields: object) -> JsonObject | None:
        """The last row of ``kind`` whose fields are these."""
        matches = [row for row in self.of(kind) if all(row.get(name) == value for name, value in fields.items())]
        return matches[-1] if matches else None


def read(path: Path) -> list[JsonObject]:
    """The finished rows of a ledger, without opening it for writing or repairing it."""
    rows, _ = _parse(path)
    return rows


def _finished_rows(path: Path) -> list[JsonObject]:
    rows, length = _parse(path)
    if length < path.stat().st_size:
        with path.open("rb") as file:
            start = file.read(len(_START))
        if not rows and not _START.startswith(start):
            raise FolderError(f"{path} is not a ledger of laconic", fix="give another --out")
        with path.open("r+b") as file:
            file.truncate(length)
    return rows


def _parse(path: Path) -> tuple[list[JsonObject], int]:
    """The rows and the length in bytes of the finished lines."""
    rows: list[JsonObject] = []
    length = 0
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            break
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or "row" not in row:
            raise FolderError(f"line {number} of {path} is not a row of a ledger", fix="give another --out")
        rows.append(row)
        length += len(line)
    return rows, length


def _check(found: JsonObject, wanted: JsonObject, path: Path) -> None:
    if found.get("row") != "header" or "schema" not in found:
        raise FolderError(f"{path} is not a ledger of laconic", fix="give another --out")
    if found["schema"] > SCHEMA:
        raise FolderError(
            f"{path} was written by a newer laconic", got=f"schema {found['schema']}", wanted=f"at most {SCHEMA}",
            fix="update laconic or give another --out",
        )  # fmt: skip
    for name in wanted:
        if found.get(name) != wanted[name]:
            raise FolderError(
                f"{path} belongs to another {name}", got=wanted[name], wanted=found.get(name),
                fix="give another --out, or the model, data, --seed and --no-train that it was made with",
            )  # fmt: skip
