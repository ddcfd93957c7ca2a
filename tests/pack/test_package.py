"""The folder that shrink returns: whole at every moment, and read only if it is what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from laconic.core import Preprocess, Target
from laconic.errors import FolderError
from laconic.pack import package

PREPROCESS = Preprocess(channels="L", resize=(8, 8), mean=(0.5,), std=(0.25,))


def manifest(**changed: object) -> dict:
    return {
        "target": "openvino:cpu,threads=2,batch=1",
        "labels": ["cat", "dog"],
        "preprocess": PREPROCESS.to_json(),
        "recipe": [{"step": "Quantize", "exclude": ["head"]}],
        "baseline": {"score": 0.9},
        **changed,
    }


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    model, baseline = tmp_path / "abc.onnx", tmp_path / "def.onnx"
    model.write_bytes(b"small")
    baseline.write_bytes(b"the original")
    return model, baseline


@pytest.fixture
def written(tmp_path: Path, files: tuple[Path, Path]) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    package.write(folder, manifest(), *files, "<html>report</html>")
    return folder


def test_what_is_written_is_read(written: Path) -> None:
    found = package.read(written)
    assert found.model_path.read_bytes() == b"small"
    assert found.baseline_path.read_bytes() == b"the original"
    assert found.target == Target("openvino", threads=2)
    assert found.labels == ("cat", "dog")
    assert found.preprocess == PREPROCESS
    assert found.manifest["schema"] == package.SCHEMA
    assert found.manifest["file"] == {"name": "model.onnx", "bytes": 5, "sha256": package.sha256(found.model_path)}
    assert found.manifest["baseline"]["score"] == 0.9
    assert yaml.safe_load((written / "recipe.yaml").read_text()) == [{"step": "Quantize", "exclude": ["head"]}]
    assert (written / "report.html").read_text() == "<html>report</html>"
    assert sorted(path.name for path in written.iterdir()) == [
        *("baseline.onnx", "manifest.json", "model.onnx", "recipe.yaml", "report.html")
    ]


def test_the_callers_manifest_is_left_alone(tmp_path: Path, files: tuple[Path, Path]) -> None:
    mine = manifest()
    package.write(tmp_path, mine, *files, "")
    assert mine == manifest()


def test_a_package_without_preprocessing(tmp_path: Path, files: tuple[Path, Path]) -> None:
    assert package.write(tmp_path, manifest(preprocess=None), *files, "").preprocess is None


def test_the_files_ending_is_the_runtimes(tmp_path: Path, files: tuple[Path, Path]) -> None:
    model = files[0].rename(files[0].with_suffix(".pt2"))
    assert package.write(tmp_path, manifest(), model, files[1], "").model_path.name == "model.pt2"


def test_a_disk_that_fills_up_leaves_the_earlier_package_whole(
    written: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str, encoding: str) -> None:
        if path.name == "part-manifest.json":
            raise OSError("no space left on device")
        original(path, text, encoding=encoding)

    original, before = Path.write_text, {path.name: path.read_bytes() for path in written.iterdir()}
    files[0].write_bytes(b"smaller")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        package.write(written, manifest(labels=["a"]), *files, "<html>new</html>")
    assert {path.name: path.read_bytes() for path in written.iterdir()} == before
    assert package.read(written).labels == ("cat", "dog")


def test_the_manifest_is_renamed_last(written: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    replace, done = package.os.replace, []
    monkeypatch.setattr("os.replace", lambda source, place: (done.append(place.name), replace(source, place)))
    package.write(written, manifest(), *files, "<html>new</html>")
    assert done == ["model.onnx", "baseline.onnx", "recipe.yaml", "report.html", "manifest.json"]


def test_no_numbers_that_json_lacks(tmp_path: Path, files: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        package.write(tmp_path, manifest(ratio=float("nan")), *files, "")
    assert not (tmp_path / "manifest.json").exists()


# ------------------------------------------------------------------------------------------------------------- refused


def test_a_folder_that_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"^not a package: got .*, wanted a folder with manifest\.json; name shrink"):
        package.read(tmp_path)
    with pytest.raises(FolderError, match="not a package"):
        package.read(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", '"text"'])
def test_a_manifest_that_cannot_be_read(text: str, written: Path) -> None:
    (written / "manifest.json").write_text(text)
    with pytest.raises(FolderError, match=r"manifest\.json cannot be read"):
        package.read(written)


def test_a_newer_schema(written: Path) -> None:
    found = json.loads((written / "manifest.json").read_text())
    (written / "manifest.json").write_text(json.dumps(dict(found, schema=99)))
    with pytest.raises(FolderError, match="written by a newer laconic: got schema 99, wanted at most 1"):
        package.read(written)


@pytest.mark.parametrize("name", ["model.onnx", "baseline.onnx"])
def test_a_file_that_is_not_the_one_certified(name: str, written: Path) -> None:
    (written / name).write_bytes(b"tampered")
    with pytest.raises(FolderError, match=rf"{name} is not the file that was certified"):
        package.read(written)
    (written / name).unlink()
    with pytest.raises(FolderError, match=f"the package lacks {name}"):
        package.read(written)
