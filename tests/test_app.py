"""Every command but shrink: what it prints for people and for programs, what it writes, what it gives back."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest

from laconic.pack import package
from laconic.profile import profile
from laconic.report.words import points_at_most
from laconic.steps import STEPS
from tests import stories
from tests.stories import laconic, pictured, shop, sized, zoo

# ----------------------------------------------------------------------------------------------------------------- eval


def test_eval_on_the_same_data_uses_the_holdout_and_says_that_it_was_seen() -> None:
    said = laconic("eval", sized().out, "--data", "digits", "--json")
    assert said.code == 0, said.err
    assert said.err == ""
    found = said.json
    assert {"metric", "score", "n", "agreement", "latency_ms"} <= set(found)
    assert set(found["latency_ms"]) == {"p50", "p90", "p99"}
    assert found["latency_ms"]["p50"] <= found["latency_ms"]["p90"] <= found["latency_ms"]["p99"]
    before = sized().said.json
    assert (found["metric"], found["n"]) == ("top1", before["certificate"]["n"])
    assert found["score"] == before["best"]["score"]
    assert found["certificate"]["independent"] is False
    assert found["certificate"]["bound"] == before["certificate"]["bound"]
    assert found["certificate"]["passed"] is True
    assert 0.98 < found["agreement"] <= 1


def test_eval_on_other_data_uses_all_of_it_and_is_independent() -> None:
    said = laconic("eval", sized().out, "--data", shop("others"), "--json")
    found = said.json
    assert (found["n"], found["certificate"]["independent"]) == (600, True)
    assert found["score"] < 0.9  # a shift by a pixel is hard for so small a network
    assert said.code == (0 if found["certificate"]["passed"] else 3)


def test_eval_by_another_floor_and_confidence() -> None:
    said = laconic("eval", sized().out, "--data", "digits", "--max-drop", "0.05%", "--json")
    assert (said.code, said.json["certificate"]["passed"]) == (3, False)
    found = laconic(
        "eval", sized().out, "--data", "digits", "--max-drop", "5%rel", "--confidence", "99%", "--json"
    ).json
    assert found["certificate"]["max_drop"] == pytest.approx(0.05 * sized().said.json["baseline"]["score"])
    assert found["certificate"]["confidence"] == 0.99
    assert found["certificate"]["bound"] > sized().said.json["certificate"]["bound"]


def test_eval_on_another_runtime() -> None:
    pytest.importorskip("openvino")
    found = laconic("eval", sized().out, "--data", "digits", "--target", "openvino", "--json").json
    assert found["target"].startswith("openvino:cpu")
    assert found["score"] == pytest.approx(sized().said.json["best"]["score"], abs=0.01)


def test_eval_of_a_model() -> None:
    said = laconic("eval", shop("trained"), "--data", "digits", "--json")
    assert said.code == 0, said.err
    found = said.json
    assert found["n"] == 1797 - 128
    assert found["score"] > 0.98
    assert (found["agreement"], found["certificate"]) == (1.0, None)


def test_eval_without_labels() -> None:
    found = laconic("eval", sized().out, "--data", shop("unlabelled"), "--json").json
    assert found["metric"] == "agreement"
    assert found["score"] == found["agreement"]


def test_eval_for_people() -> None:
    said = laconic("eval", sized().out, "--data", "digits")
    words = " ".join(said.out.split())
    assert "of 1310 samples" in words
    assert "stands above the floor: drop" in words
    assert "these samples were used for its certificate before: not independent" in words


def test_eval_with_the_pictures_it_was_made_with() -> None:
    found = laconic("eval", pictured(), "--data", stories.pictures(), "--json").json
    assert found["certificate"]["independent"] is False
    assert found["n"] == package.read(pictured()).manifest["splits"]["holdout"]


# ------------------------------------------------------------------------------------------------------------------ run


def test_run_on_pictures() -> None:
    first, second = (stories.pictures() / name for name in ("1/0001.png", "7/0007.png"))
    found = laconic("run", pictured(), first, second, "--top", "2", "--json").json["predictions"]
    assert [row["input"] for row in found] == [str(first), str(second)]
    assert [row["labels"][0]["label"] for row in found] == ["1", "7"]
    assert all(len(row["labels"]) == 2 for row in found)
    assert found[0]["labels"][0]["score"] > found[0]["labels"][1]["score"] > 0


def test_run_prepares_pictures_as_evaluation_did(tmp_path: Path) -> None:
    from PIL import Image

    path = stories.pictures() / "5" / "0005.png"
    x = np.asarray(Image.open(path), np.float32)[None] / 255
    np.save(tmp_path / "x.npy", x)
    picture, array = laconic("run", pictured(), path, tmp_path / "x.npy", "--json").json["predictions"]
    assert picture["labels"] == array["labels"]


def test_run_on_arrays(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    x = (load_digits().images[:3, None] / 16).astype(np.float32)
    np.save(tmp_path / "three.npy", x)
    np.save(tmp_path / "one.npy", x[1].astype(np.float64))
    found = laconic("run", sized().out, tmp_path / "three.npy", tmp_path / "one.npy", "--json").json["predictions"]
    assert [row["input"] for row in found] == [
        *(f"{tmp_path / 'three.npy'}[{i}]" for i in range(3)),
        str(tmp_path / "one.npy"),
    ]
    assert [row["labels"][0]["class"] for row in found[:3]] == [0, 1, 2]
    assert found[3]["labels"] == found[1]["labels"]
    assert sum(
        label["score"]
        for label in laconic("run", sized().out, tmp_path / "one.npy", "--top", "10", "--json").json["predictions"][0][
            "labels"
        ]
    ) == pytest.approx(1)


def test_run_for_people() -> None:
    said = laconic("run", pictured(), stories.pictures() / "4" / "0004.png", "--top", "1")
    assert "0004.png" in said.out
    assert "4 9" in " ".join(said.out.split())  # the label, then its score in percent


# -------------------------------------------------------------------------------------------------------------- profile


ROOF = {"bandwidth": 1e10, "peak": {"f32": 1e11, "int8": 4e11}, "threads": 1}


@pytest.fixture
def roof(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that was measured before."""
    monkeypatch.setattr("laconic.story.roofline.measured", lambda threads, reporter: ROOF)


def test_profile_for_programs(roof: None) -> None:
    said = laconic("profile", zoo(), "--json")
    found = said.json
    assert found["params"] == sized().said.json["baseline"]["params"]
    assert found["macs"] == sized().said.json["baseline"]["macs"]
    assert found["file_bytes"] == pytest.approx(sized().said.json["baseline"]["file_bytes"], rel=1e-3)
    assert found["latency_ms"]["p10"] <= found["latency_ms"]["p50"] <= found["latency_ms"]["p90"]
    assert found["per_second"] == pytest.approx(1e3 / found["latency_ms"]["p50"])
    rows = {row["name"]: row for row in found["layers"]}
    for name in ("params", "macs", "flops", "dram_bytes", "backward_macs", "kept_bytes", "energy_pj"):
        whole = sum(found["energy"].values()) if name == "energy_pj" else found[name]
        assert sum(row[name] for row in rows.values()) == pytest.approx(whole)
    assert all(rows[name]["time_ms"] > 0 for name in ("conv1", "conv2", "conv3", "fc"))
    bound = max(rows["conv2"]["flops"] / 1e11, rows["conv2"]["dram_bytes"] / 1e10) * 1e3
    assert rows["conv2"]["bound_ms"] == pytest.approx(bound)


def test_profile_for_people(roof: None) -> None:
    said = laconic("profile", shop("trained"), "--input", "1x8x8", "--top", "2")
    assert said.code == 0
    words = " ".join(said.out.split())
    assert "the 2 weightiest of" in words
    assert "conv3" in words
    assert "parameters 24.1 k" in words
    assert "MACs 600 k" in words
    assert max(map(len, said.out.splitlines())) <= 80


def test_profile_counts_as_the_library_does(roof: None) -> None:
    import torch

    from laconic.models import load

    loaded = load(zoo())
    counted = profile(loaded.module, torch.zeros(1, *loaded.input_shape), cache_bytes=20_000).to_json()
    found = laconic("profile", zoo(), "--cache", "20kB", "--json").json
    assert {name: found[name] for name in counted if name != "layers"} == {
        name: value for name, value in json.loads(json.dumps(counted)).items() if name != "layers"
    }
    assert found["dram_bytes"] > laconic("profile", zoo(), "--json").json["dram_bytes"]


def test_profile_on_data_and_of_a_model_with_two_inputs(roof: None) -> None:
    found = laconic("profile", shop("trained"), "--data", "digits", "--json").json
    assert found["macs"] == sized().said.json["baseline"]["macs"]
    found = laconic("profile", shop("Sum"), "--data", shop("halves"), "--json").json
    assert set(found["inputs"]) == {"left", "right"}


def test_profile_of_a_package(roof: None) -> None:
    found, manifest = laconic("profile", sized().out, "--json").json, sized().manifest
    assert (found["params"], found["macs"]) == (manifest["best"]["params"], manifest["best"]["macs"])
    assert found["file_bytes"] == manifest["file"]["unpacked"]["bytes"]
    assert found["nonzero"] is None  # the weights are in the file alone


def test_profile_writes_a_picture_and_a_page(roof: None, tmp_path: Path) -> None:
    said = laconic("profile", zoo(), "--out", tmp_path / "new")
    assert said.code == 0, said.err
    picture, page = ((tmp_path / "new" / f"profile.{kind}").read_text() for kind in ("svg", "html"))
    for text in (picture, page):
        assert ">parameters<" in text
        assert ">milliseconds<" in text
        assert "conv2: " in text
        assert str(stories.home()) not in picture
    assert "conv3" in page


def test_profile_of_what_cannot_be_deployed_is_counted_and_says_so(roof: None) -> None:
    said = laconic("profile", shop("Branching"), "--input", "1x8x8")
    assert said.code == 0, said.err
    assert "Not timed: it cannot be deployed on onnxruntime:cpu" in " ".join(said.out.split())
    said = laconic("profile", shop("Singular"), "--input", "1x8x8")
    words = " ".join(said.out.split())
    assert "Not counted, since nothing is known of them: aten::_linalg_svd x1." in words
    assert "MACs at least 6" in words


def test_the_roof_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from laconic.measure import roofline
    from laconic.story import roofline as story
    from laconic.story.reporter import Reporter

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(roofline, "bandwidth", functools.partial(roofline.bandwidth, array_bytes=2**22, passes=1))
    monkeypatch.setattr(roofline, "peak", functools.partial(roofline.peak, calls=3))
    first = story.measured(1, Reporter())
    assert first["bandwidth"] > 1e8
    assert first["peak"]["f32"] > 1e8
    (kept,) = (tmp_path / "laconic").iterdir()
    monkeypatch.setattr(roofline, "bandwidth", lambda threads: 1 / 0)
    assert story.measured(1, Reporter()) == first
    kept.write_text("{")  # what was cut off is measured again
    monkeypatch.setattr(roofline, "bandwidth", lambda threads: 5.0)
    assert story.measured(1, Reporter())["bandwidth"] == 5.0


# --------------------------------------------------------------------------------------------------------------- export


def test_export_to_a_runtime_that_reads_the_file(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    out = tmp_path / "new" / "model.onnx"
    said = laconic("export", sized().out, "--target", "openvino:cpu", "--out", out, "--json")
    assert said.code == 0, said.err
    assert said.json["file"] == str(out)
    assert said.json["bytes"] == out.stat().st_size
    assert said.json["difference"] < 0.1
    assert package.sha256(out) == sized().manifest["file"]["unpacked"]["sha256"]
    assert list(out.parent.iterdir()) == [out]
    shown = laconic("export", sized().out, "--target", "openvino:cpu", "--out", out)
    assert f"wrote {out}" in shown.out.replace("\n", "")


def test_export_to_tensorrt_without_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    command = ("export", sized().out, "--target", "tensorrt:cuda", "--out", tmp_path / "m.onnx")
    said = laconic(*command, "--json")
    assert said.code == 0, said.err
    note = "checked structurally and computed by ONNX Runtime on this machine; not run on TensorRT"
    assert said.json["note"] == note
    assert said.json["difference"] < 0.2
    kinds = {tensor.data_type for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert onnx.TensorProto.UINT8 not in kinds
    assert note in " ".join(laconic(*command).out.split())


def test_export_to_one_that_does_not_is_refused_with_the_way_to_do_it(tmp_path: Path) -> None:
    said = laconic("export", sized().out, "--target", "torch", "--out", tmp_path / "m.pt2")
    assert said.code == 2
    assert "torch does not read .onnx files" in said.complaint
    assert "--recipe" in said.complaint
    assert list(tmp_path.iterdir()) == []


def test_export_writes_nothing_where_the_answers_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laconic.story.apply.relative_error", lambda found, wanted: 0.5)
    said = laconic("export", sized().out, "--target", "onnxruntime", "--out", tmp_path / "m.onnx")
    assert said.code == 2
    assert "the file gives another answer: got relative error 0.5" in said.complaint
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------------------- explain


def test_explain_prints_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webbrowser.open", lambda url: pytest.fail("no terminal, no browser"))
    said = laconic("explain", sized().out)
    assert said.code == 0
    bound = points_at_most(sized().said.json["certificate"]["bound"])
    assert f"certified: top-1 fell by at most {bound} points at 95 %" in said.out
    assert "Quantize" in said.out
    assert str(sized().out / "report.html") in said.out.replace("\n", "")
    assert laconic("explain", sized().out, "--json").json == sized().manifest


# --------------------------------------------------------------------------------------------- the command line itself


def test_the_parser_knows_eight_commands_and_one_vocabulary() -> None:
    from laconic.cli import _parser

    with pytest.raises(SystemExit) as end:
        _parser().parse_args(["shrink", "--help"])
    assert end.value.code == 0


@pytest.mark.parametrize("command", ["shrink", "eval", "run", "profile", "export", "explain", "doctor", "demo"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    from laconic.cli import main

    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: laconic {command}" in said
    assert "--json" in said


def test_the_version() -> None:
    import laconic as project

    run = subprocess.run([sys.executable, "-m", "laconic.cli", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout == f"laconic {project.__version__}\n"


def test_an_internal_fault_is_kept_in_a_file_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("laconic.doctor.examine", lambda: 1 / 0)
    said = laconic("doctor")
    assert said.code == 1
    assert said.complaint.startswith("internal error: ZeroDivisionError: division by zero; traceback in ")
    (log,) = tmp_path.iterdir()
    assert str(log) in said.complaint
    assert "Traceback" in log.read_text()
    assert "examine" in log.read_text()


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device", "/somewhere")

    monkeypatch.setattr("laconic.doctor.examine", full)
    said = laconic("doctor")
    assert (said.code, said.complaint) == (2, "No space left on device; what was finished is kept")


def test_an_interrupt_anywhere_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("laconic.doctor.examine", interrupted)
    said = laconic("doctor")
    assert (said.code, said.complaint) == (130, "interrupted")


def test_a_reader_that_went_away_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise BrokenPipeError

    monkeypatch.setattr("laconic.doctor.examine", gone)
    said = laconic("doctor")
    assert (said.code, said.out, said.err) == (1, "", "")


def test_the_environment_that_training_needs_is_set_before_torch_is_loaded() -> None:
    code = """
        import os
        from laconic import cli
        os.environ.pop("OMP_WAIT_POLICY", None)
        cli.main(["profile", "zoo:no"])
        print(os.environ["OMP_WAIT_POLICY"])
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert run.stdout == "PASSIVE\n"


def test_no_steps_are_hidden_from_recipes() -> None:
    from laconic.core import Recipe

    for name in STEPS:
        assert Recipe.parse([{"step": name}], STEPS).to_json() == [{"step": name}]
