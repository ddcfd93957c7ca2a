"""The output folder: claimed before the work, and given back as it was found where nothing came of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from laconic import ledger
from laconic.errors import FolderError, InputError, LaconicError
from laconic.pack import package

LOG = "laconic.log"
FILES = "trials"


@dataclass(frozen=True)
class Folder:
    """A claimed folder, and what was there before: itself and those above it, and what they held."""

    path: Path
    before: frozenset[Path]

    @property
    def files(self) -> Path:
        """Where the trials' files lie."""
        return self.path / FILES

    def give_back(self, error: BaseException) -> None:
        """Remove what was made since the claim, unless a candidate was finished, or the search went on long enough to
        see every candidate fail. After an internal fault the log stays: it holds the traceback."""
        if self._worth_keeping(error):
            return
        mended = isinstance(error, (InputError, KeyboardInterrupt))
        for path in sorted(_below(self.path), reverse=True):  # what is in a folder before the folder
            if path in self.before or (path.name == LOG and path.stat().st_size and not mended):
                continue
            if not path.is_dir():
                path.unlink()
            elif not any(path.iterdir()):
                path.rmdir()
        for path in (self.path, *self.path.parents):
            if path not in self.before and not any(path.iterdir()):
                path.rmdir()

    def _worth_keeping(self, error: BaseException) -> bool:
        path = self.path / package.LEDGER
        if path in self.before or (self.path / package.MANIFEST).exists():
            return True
        rows = [row for row in ledger.read(path) if row["row"] == "trial" and row["recipe"]] if path.exists() else []
        failed = isinstance(error, LaconicError) and not isinstance(error, InputError)
        return any(row["error"] is None or failed for row in rows)


def claim(path: Path) -> Folder:
    """Make the output folder, or accept one that holds a ledger, or what a run leaves that was killed before it had
    one. Raises :class:`FolderError` if it holds something else."""
    if path.exists() and not path.is_dir():
        raise FolderError("--out is a file", got=str(path), wanted="a folder, new or of an earlier run")
    held = frozenset(path.iterdir()) if path.is_dir() else frozenset()
    others = {entry.name for entry in held} - {LOG, FILES}
    if others and package.LEDGER not in others:
        raise FolderError("the output folder holds something else", got=str(path), fix="give a new or an empty --out")
    above = [p for p in (path, *path.parents) if p.exists()]
    before = held.union(above, _below(path / FILES))
    try:
        (path / FILES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderError(f"the output folder cannot be made: {error}", fix="give another --out") from error
    return Folder(path, before)


def _below(path: Path) -> Iterator[Path]:
    return path.rglob("*") if path.is_dir() else iter(())
