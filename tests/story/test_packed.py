"""A packed model: exported, run and judged without its package; a package that keeps one form."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest

from laconic.errors import FolderError, ModelError
from laconic.pack import container, package
from laconic.story import packed
from tests.pack.files import small
from tests.stories import laconic, sized


@pytest.fixture(scope="module")
def lac(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's model, exported by the command."""
    path = tmp_path_factory.mktemp("packed") / "net.lac"
    said = laconic("export", sized().out, "--target", "lac", "--out", path, "--json")
    assert said.code == 0, said.err
    found = said.json
    assert found["bytes"] == path.stat().st_size == found["payload_bytes"] + found["structure_bytes"]
    assert found["unpacked"]["sha256"] == sized().manifest["file"]["unpacked"]["sha256"]
    content = container.unpack_file(path).content
    assert hashlib.sha256(content).hexdigest() == found["unpacked"]["sha256"]
    return path


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "x.npy"
    np.save(path, np.random.default_rng(0).random((3, 1, 8, 8)).astype(np.float32))
    return path


def test_it_runs_like_its_package(lac: Path, samples: Path) -> None:
    alone, whole = (laconic("run", subject, samples, "--json") for subject in (lac, sized().out))
    assert alone.code == whole.code == 0, alone.err
    for one, other in zip(alone.json["predictions"], whole.json["predictions"], strict=True):
        assert [label["class"] for label in one["labels"]] == [label["class"] for label in other["labels"]]
        assert [label["score"] for label in one["labels"]] == [label["score"] for label in other["labels"]]


def test_it_is_scored_without_its_package(lac: Path) -> None:
    said = laconic("eval", lac, "--data", "digits", "--json")
    assert said.code == 0, said.err
    found = said.json
    assert found["score"] > 0.9
    assert found["certificate"] is None
    assert found["packed_bytes"] == lac.stat().st_size > found["payload_bytes"]
    assert found["file_bytes"] == sized().manifest["file"]["unpacked"]["bytes"]
    shown = laconic("eval", lac, "--data", "digits").out
    assert "packed" in shown


def test_what_was_written_is_said(tmp_path: Path) -> None:
    said = laconic("export", sized().out, "--target", "lac", "--out", tmp_path / "net.lac")
    words = " ".join(said.out.split())
    assert "of weights" in words
    assert sized().manifest["file"]["unpacked"]["sha256"] in words.replace(" ", "")


def test_a_package_keeps_one_form(tmp_path: Path) -> None:
    out, _ = sized().copy(tmp_path / "out")
    found = package.read(out)
    model = found.model_path
    assert model.read_bytes() == container.unpack_file(out / "model.lac").content
    package.write(out, found.manifest, model, found.baseline_path, "")
    assert sorted(path.name for path in out.glob("model.*")) == ["model.onnx"]
    assert package.read(out).model_path == out / "model.onnx"
    folder = model.parent
    del found
    assert not folder.exists()  # what was decoded goes with the package that was read


def test_a_package_whose_packed_model_is_another_one(tmp_path: Path) -> None:
    out, _ = sized().copy(tmp_path / "out")
    (out / "model.lac").write_bytes(container.pack(small(), ".onnx").content)
    found = package.Package(out, sized().manifest)
    with pytest.raises(FolderError, match="does not hold the file that was certified"):
        _ = found.model_path


# ------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "LAC", "nowhere.npy"], "no such input: got nowhere.npy"),
        (["run", "none.lac", "X"], "no such packed model: got none.lac, wanted a .lac file"),
        (["run", "X.lac", "X"], "X.lac is no packed model"),
        (["eval", "LAC", "--data", "digits", "--target", "torch"], "torch does not read this file: got .onnx"),
        (["export", "OUT", "--target", "lac", "--out", "net.onnx"], "--out has another ending: got net.onnx, wanted"),
        (["export", "OUT", "--target", "lac", "--out", "."], "--out is a folder: got ."),
    ],
)
def test_bad_input(
    arguments: list[str], words: str, lac: Path, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "X.lac").write_bytes(b"something else")
    places = {"LAC": str(lac), "OUT": str(sized().out), "X": str(samples)}
    said = laconic(*[places.get(word, word) for word in arguments])
    assert (said.code, said.out) == (2, "")
    assert words in said.complaint
    assert [path.name for path in tmp_path.iterdir()] == ["X.lac"]


def test_a_file_that_does_not_say_what_it_takes(tmp_path: Path) -> None:
    path = tmp_path / "net.lac"
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", "features"])
    graph = onnx.helper.make_graph([], "g", [value], [value])
    path.write_bytes(container.pack(onnx.helper.make_model(graph).SerializeToString(), ".onnx").content)
    with pytest.raises(ModelError, match="does not say how large its input x is"), packed.opened(path):
        pass
    path.write_bytes(container.pack(b"flat", ".tflite").content)
    with pytest.raises(ModelError, match=r"only packed ONNX files say .* got a \.tflite"), packed.opened(path):
        pass
