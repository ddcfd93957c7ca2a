"""The folder that ``shrink`` returns: what is in it, how it is written so that it is whole at every moment, and read.

    model.onnx      the deployable file (its ending is the runtime's); or model.lac, the same entropy-coded
    baseline.onnx   the original on the same runtime: ``eval`` times and re-certifies against it
    manifest.json   what was done and found: recipe, facts, hashes, pre-processing, labels, certificate, machine
    recipe.yaml     the recipe alone, to be replayed
    report.html     for people
    ledger.jsonl    every trial

All files are written under other names, and renamed when all are there; the manifest last, since it names the others'
hashes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

import yaml

from laconic.core import JsonObject, Preprocess, Target
from laconic.errors import FolderError

SCHEMA = 1
MANIFEST = "manifest.json"
LEDGER = "ledger.jsonl"
REPORT = "report.html"
RECIPE = "recipe.yaml"
PACKED = ".lac"


@dataclass(frozen=True)
class Package:
    """A package that was read: its folder and its manifest."""

    folder: Path
    manifest: JsonObject

    @functools.cached_property
    def model_path(self) -> Path:
        """The deployable file; where the package keeps it packed, decoded, in a folder that goes when this object
        does."""
        path = self._kept_path
        if path.suffix != PACKED:
            return path
        from laconic.pack import container  # it brings a compiler

        found, stated = container.unpack_file(path), self.manifest["file"]["unpacked"]
        if hashlib.sha256(found.content).hexdigest() != stated["sha256"]:
            raise FolderError(f"{path} does not hold the file that was certified: its hash differs from the manifest's")
        folder = Path(tempfile.mkdtemp(prefix="laconic-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        opened = folder / f"model{found.suffix}"
        opened.write_bytes(found.content)
        return opened

    @property
    def _kept_path(self) -> Path:
        return self.folder / str(self.manifest["file"]["name"])

    @property
    def baseline_path(self) -> Path:
        return self.folder / str(self.manifest["baseline"]["file"]["name"])

    @property
    def target(self) -> Target:
        return Target.parse(self.manifest["target"])

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.manifest["labels"])

    @property
    def preprocess(self) -> Preprocess | None:
        stated = self.manifest["preprocess"]
        return Preprocess.from_json(stated) if stated else None


def write(
    folder: Path, manifest: JsonObject, model: Path, baseline: Path, report: str, *, packed: bool = False
) -> Package:
    """Write the package's files into ``folder``; ``manifest`` gets the names, sizes and hashes of its two models.
    ``packed`` keeps the model as a ``.lac`` file alone."""
    manifest = dict(manifest, schema=SCHEMA)
    copied = folder / f"model{PACKED if packed else model.suffix}", folder / f"baseline{baseline.suffix}"
    paths = (*copied, *(folder / name for name in (RECIPE, REPORT, MANIFEST)))
    try:
        manifest["file"] = (_packed if packed else _copied)(model, copied[0])
        manifest["baseline"] = dict(manifest["baseline"], file=_copied(baseline, copied[1]))
        stated = json.dumps(manifest, indent=1, allow_nan=False) + "\n"
        texts = yaml.safe_dump(manifest["recipe"], sort_keys=False), report, stated
        for path, text in zip(paths[2:], texts, strict=True):
            _part(path).write_text(text, encoding="utf-8")
        for path in paths:
            os.replace(_part(path), path)
        for path in folder.glob("model.*"):
            if path != copied[0]:
                path.unlink()  # an earlier package kept its model in another form
    finally:
        for path in paths:
            _part(path).unlink(missing_ok=True)
    return Package(folder, manifest)


def read(folder: Path) -> Package:
    """Read a package; raises :class:`FolderError` if ``folder`` is none, or if its model is not the one it names."""
    path = folder / MANIFEST
    if not path.is_file():
        raise FolderError(
            "not a package", got=str(folder), wanted=f"a folder with {MANIFEST}", fix="name shrink's --out"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        schema = manifest["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise FolderError(f"{path} cannot be read: {error}", fix="run shrink again with this --out") from error
    if schema > SCHEMA:
        raise FolderError(f"{path} was written by a newer laconic", got=f"schema {schema}", wanted=f"at most {SCHEMA}")
    package = Package(folder, manifest)
    for path, stated in ((package._kept_path, manifest["file"]), (package.baseline_path, manifest["baseline"]["file"])):
        if not path.is_file():
            raise FolderError(f"the package lacks {path.name}", fix="run shrink again with this --out")
        if sha256(path) != stated["sha256"]:
            raise FolderError(f"{path} is not the file that was certified: its hash differs from the manifest's")
    return package


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copied(source: Path, destination: Path) -> JsonObject:
    """Copy beside ``destination``; what the manifest says of the file."""
    part = _part(destination)
    shutil.copyfile(source, part)
    return {"name": destination.name, "bytes": part.stat().st_size, "sha256": sha256(part)}


def _packed(source: Path, destination: Path) -> JsonObject:
    """Pack beside ``destination``; what the manifest says of the file, and of what it decodes to."""
    from laconic.pack import container

    part, found = _part(destination), container.pack_file(source)
    part.write_bytes(found.content)
    unpacked = {"suffix": source.suffix, "bytes": source.stat().st_size, "sha256": sha256(source)}
    known = {"name": destination.name, "bytes": len(found.content), "sha256": sha256(part)}
    return {**known, "payload_bytes": found.payload, "unpacked": unpacked}


def _part(path: Path) -> Path:
    return path.with_name(f"part-{path.name}")
