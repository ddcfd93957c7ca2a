"""The whole story on a small network, by the command line: what is written, what is said, what is promised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from laconic.pack import package
from tests import stories
from tests.stories import laconic, rows_of, shop, sized

NUMBERS = {"score", "file_bytes", "packed_bytes", "payload_bytes", "latency_ms", "macs", "params"}
QUICK = ("--minimize", "size", "--max-drop", "5%", "--budget", "1trials", "--no-train", "--json")


def recipe_file(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(yaml.safe_dump(rows))
    return path


# ---------------------------------------------------------------------------------------------------- what is said


def test_a_certified_result() -> None:
    said = sized().said
    assert said.code == 0, said.err
    found = said.json
    assert found["status"] == "certified"
    assert found["certificate"]["bound"] <= 0.03
    assert found["certificate"]["drop"] <= found["certificate"]["bound"]
    assert found["ratio"]["size"] > 3
    assert found["best"]["file_bytes"] * found["ratio"]["size"] == pytest.approx(found["baseline"]["file_bytes"])


def test_the_summary_has_the_keys_that_are_promised() -> None:
    found = sized().said.json
    assert set(found) == {
        *("schema", "status", "package", "target", "seconds", "trials", "baseline", "best", "ratio", "certificate")
    }
    assert set(found["baseline"]) == NUMBERS
    assert set(found["best"]) == {*NUMBERS, "recipe"}
    assert set(found["ratio"]) == {"size", "packed", "latency", "only_stored"}
    assert set(found["ratio"]["latency"]) == {"value", "low", "high"}
    listed = {"metric", "drop", "bound", "max_drop", "confidence", "n"}
    assert set(found["certificate"]) == {*listed, "independent"}
    assert (found["schema"], found["trials"]) == (1, 4)
    assert found["target"] == "onnxruntime:cpu,threads=1,batch=1"
    assert found["package"] == str(sized().out)
    assert found["certificate"]["n"] == 1310
    assert found["certificate"]["independent"] is True
    assert found["certificate"]["confidence"] == 0.95
    assert found["best"]["payload_bytes"] < found["best"]["packed_bytes"] < found["best"]["file_bytes"]
    ratio = found["baseline"]["packed_bytes"] / found["best"]["packed_bytes"]
    assert found["ratio"]["packed"] == pytest.approx(ratio)


def test_progress_is_on_standard_error_and_whole() -> None:
    lines = sized().said.err.splitlines()
    assert "top1 99" in lines[1]
    assert "128 train, 359 search, 1310 holdout" in lines[1]
    assert any("1310 holdout samples can prove a drop of 0.23% at 0%" in line for line in lines)
    assert any(line.startswith(f"a first package is in {sized().out}, uncertified yet") for line in lines)
    assert "the budget has ended" in lines
    assert not any("…" in line for line in lines)


def test_for_people_there_are_a_table_and_a_sentence(tmp_path: Path) -> None:
    _, command = sized().copy(tmp_path / "again")
    said = laconic(*[word for word in command if word != "--json"])
    assert said.code == 0
    assert "certified: top-1 accuracy" in said.out
    assert "3.00 being allowed" in said.out
    assert str(tmp_path / "again") in said.out.replace("\n", "")


def test_nothing_is_written_outside_the_folder() -> None:
    assert sized().said.code == 0
    assert list(sized().cwd.iterdir()) == []
    assert list(sized().scratch.iterdir()) == []


# ----------------------------------------------------------------------------------------------- what is written


def test_the_files_of_a_package() -> None:
    out, manifest = sized().out, sized().manifest
    files = {path.name for path in out.iterdir() if path.is_file()}
    assert files == {
        *("model.lac", "baseline.onnx", "manifest.json", "recipe.yaml", "report.html", "ledger.jsonl", "laconic.log")
    }
    for stated in (manifest["file"], manifest["baseline"]["file"]):
        path = out / stated["name"]
        assert package.sha256(path) == stated["sha256"]
        assert path.stat().st_size == stated["bytes"]
    assert manifest["file"]["bytes"] == manifest["best"]["packed_bytes"]
    assert manifest["file"]["unpacked"]["bytes"] == manifest["best"]["file_bytes"]
    assert (
        yaml.safe_load((out / "recipe.yaml").read_text()) == manifest["recipe"] == sized().said.json["best"]["recipe"]
    )
    report = (out / "report.html").read_text()
    assert "The certificate" in report
    assert "measured on this machine" in report.lower()
    assert package.read(out).manifest == manifest


def test_what_the_manifest_states() -> None:
    manifest = sized().manifest
    assert manifest["status"] == "certified"
    assert manifest["certificate"]["opening"] == 1
    assert manifest["certificate"]["lost"] is not None
    assert manifest["seed"] == 0
    assert manifest["inputs"] == {"input": {"shape": [1, 8, 8], "dtype": "float32"}}
    assert manifest["splits"] == {"train": 128, "search": 359, "holdout": 1310}
    assert manifest["tested"][0]["passed"] is True
    assert manifest["goal"]["max_drop"] == 0.03
    assert {"torch", "onnxruntime", "laconic"} <= set(manifest["libraries"])
    assert set(manifest["minimality"]) == {"below the floor", "not better", "undecided", "not tried"}
    assert len(manifest["facts"]) == len(manifest["recipe"])
    chosen = [trial for trial in manifest["trials"] if trial["chosen"]]
    assert [trial["recipe"] for trial in chosen] == [manifest["recipe"]]


def test_the_ledger_tells_the_story_in_order() -> None:
    rows = sized().rows
    assert rows[0]["row"] == "header"
    trials = [row for row in rows if row["row"] == "trial"]
    assert trials[0]["recipe"] == []
    assert len(trials) == 5
    assert len({row["key"] for row in trials}) == 5
    kinds = [row["row"] for row in rows]
    front, holdout = rows[kinds.index("front")], rows[kinds.index("holdout")]
    assert kinds.index("front") < kinds.index("holdout")
    assert front["keys"] == holdout["keys"]
    assert set(holdout["records"]) == {trials[0]["key"], *front["keys"]}
    assert all(len(records) == 1310 for records in holdout["records"].values())
    assert kinds.index("holdout") > max(i for i, kind in enumerate(kinds) if kind == "trial")
    assert rows[-1]["row"] == "latency"
    assert rows[-1]["final"] is True


def test_no_train_gives_no_training() -> None:
    steps = {step["step"] for row in sized().rows if row["row"] == "trial" for step in row["recipe"]}
    assert "Quantize" in steps
    assert steps <= {"Quantize", "PruneChannels"}


# -------------------------------------------------------------------------------------------------- again and again


@pytest.mark.usefixtures("inline")
def test_the_same_command_again_repeats_nothing(tmp_path: Path) -> None:
    out, command = sized().copy(tmp_path / "again")
    before = (out / "ledger.jsonl").read_bytes()
    said = laconic(*command)
    assert said.code == 0, said.err
    assert (out / "ledger.jsonl").read_bytes() == before
    found, first = said.json, sized().said.json
    for summary in (found, first):
        del summary["seconds"], summary["package"]
    assert found == first
    assert package.sha256(out / "model.lac") == sized().manifest["file"]["sha256"]


@pytest.mark.usefixtures("inline")
def test_a_larger_budget_goes_on_and_the_second_opening_is_said(tmp_path: Path) -> None:
    out, command = sized().copy(tmp_path / "more")
    more = ["5trials" if word == "4trials" else word for word in command]
    said = laconic(*more)
    assert said.code == 0, said.err
    rows = rows_of(out)
    assert rows[: len(sized().rows)] == sized().rows
    new = [row["row"] for row in rows[len(sized().rows) :]]
    assert new.count("trial") == 1
    assert new.count("holdout") == 1
    assert said.json["trials"] == 5
    assert said.json["certificate"]["independent"] is False
    assert "this holdout was opened 2 times: the certificate is not independent" in said.err
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["certificate"]["opening"] == 2
    assert "not independent" in (out / "report.html").read_text()
    shown = laconic("explain", out)
    assert "not independent" in shown.out


@pytest.mark.usefixtures("inline")
def test_another_floor_opens_the_holdout_again(tmp_path: Path) -> None:
    out, command = sized().copy(tmp_path / "other")
    said = laconic(*["4%" if word == "3%" else word for word in command])
    assert said.json["certificate"]["independent"] is False
    assert [row["max_drop"] for row in rows_of(out) if row["row"] == "holdout"] == [0.03, 0.04]


@pytest.mark.usefixtures("inline")
def test_another_target_in_the_same_folder_starts_its_own_count(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    _, command = sized().copy(tmp_path / "other")
    said = laconic(*["1trials" if word == "4trials" else word for word in command], "--target", "openvino")
    assert said.code == 0, said.err
    assert said.json["trials"] == 1
    assert said.json["target"].startswith("openvino")
    assert said.json["certificate"]["independent"] is False


@pytest.mark.usefixtures("inline")
def test_layers_to_keep_are_kept_though_the_ledger_knows_better(tmp_path: Path) -> None:
    out, command = sized().copy(tmp_path / "kept")
    said = laconic(*["2trials" if word == "4trials" else word for word in command], "--keep", "conv*")
    assert said.code == 0, said.err
    manifest = json.loads((out / "manifest.json").read_text())
    assert {name for facts in manifest["facts"] for name, _ in facts["layers"]} == {"fc"}
    assert said.json["ratio"]["size"] < 1.2


@pytest.mark.usefixtures("inline")
def test_a_recipe_replays_to_the_same_file(tmp_path: Path) -> None:
    command = ["shrink", shop("trained"), "--data", "digits", "--no-train", "--max-drop", "3%", "--json"]
    said = laconic(*command, "--out", tmp_path / "o", "--recipe", sized().out / "recipe.yaml", "--budget", "0")
    assert said.code == 0, said.err
    assert package.sha256(tmp_path / "o" / "model.onnx") == sized().manifest["file"]["unpacked"]["sha256"]
    assert package.sha256(tmp_path / "o" / "baseline.onnx") == sized().manifest["baseline"]["file"]["sha256"]
    assert said.json["trials"] == 1
    assert said.json["best"]["recipe"] == sized().said.json["best"]["recipe"]
    assert not [row for row in rows_of(tmp_path / "o") if row["row"] == "probe"]


@pytest.mark.usefixtures("inline")
def test_a_recipe_of_channels_products_and_integers_is_applied(tmp_path: Path) -> None:
    rows = [
        {"step": "PruneChannels", "layers": {"conv3": 0.25}, "recovery": "least_squares"},
        {"step": "SpatiallySeparable", "layers": {"conv2": 0.5}},
        {"step": "Quantize"},
    ]
    command = ["shrink", shop("trained"), "--data", "digits", "--no-train", "--max-drop", "10%", "--budget", "0"]
    said = laconic(*command, "--recipe", recipe_file(tmp_path / "r.yaml", rows), "--out", tmp_path / "o", "--json")
    assert said.code == 0, said.err
    assert said.json["best"]["recipe"] == rows
    assert said.json["best"]["macs"] < 0.7 * said.json["baseline"]["macs"]
    names = {
        name for name, macs, _ in json.loads((tmp_path / "o" / "manifest.json").read_text())["best"]["layers"] if macs
    }
    assert {"conv2.vertical", "conv2.horizontal", "conv3", "fc"} <= names


@pytest.mark.usefixtures("inline")
def test_a_recipe_that_trains_replays_to_the_same_file(tmp_path: Path) -> None:
    rows = [{"step": "PruneChannels", "ratio": 0.25}, {"step": "FineTune", "epochs": 1.0}, {"step": "Quantize"}]
    path = recipe_file(tmp_path / "r.yaml", rows)
    command = ["shrink", shop("trained"), "--data", "digits", "--max-drop", "10%", "--recipe", path, "--budget", "0"]
    hashes = []
    for name in ("one", "other"):
        said = laconic(*command, "--out", tmp_path / name, "--json")
        assert said.code == 0, said.err
        assert said.json["best"]["params"] < 0.7 * said.json["baseline"]["params"]
        hashes.append(package.sha256(tmp_path / name / "model.onnx"))
        told = json.loads((tmp_path / name / "manifest.json").read_text())["after_steps"]
        assert [part["recipe"] for part in told] == [said.json["best"]["recipe"][: i + 1] for i in range(3)]
        pruned, trained, quantized = (part["measurements"] for part in told)
        assert pruned["score"][0] < trained["score"][0]
        assert quantized["file_bytes"][0] < 0.5 * trained["file_bytes"][0]
        assert said.json["trials"] == 1
    assert hashes[0] == hashes[1]


# --------------------------------------------------------------------------------------------------- not certified


@pytest.mark.usefixtures("inline")
def test_a_floor_out_of_reach_is_said_before_and_gives_no_certificate(tmp_path: Path) -> None:
    _, command = sized().copy(tmp_path / "o")
    said = laconic(*["0.1%" if word == "3%" else word for word in command])
    assert said.code == 3
    assert said.json["status"] == "uncertified"
    assert said.json["certificate"] is None
    assert "a floor of 0.10% is out of their reach: it needs 2995 samples at the least" in said.err
    manifest = json.loads((tmp_path / "o" / "manifest.json").read_text())
    assert manifest["status"] == "uncertified"
    assert manifest["certificate"]["bound"] > 0.001
    assert "No certificate" in (tmp_path / "o" / "report.html").read_text()
    shown = laconic("explain", tmp_path / "o")
    assert "NOT CERTIFIED" in shown.out


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize(
    ("limit", "code"), [(("--max-size", "27kB"), 0), (("--max-size", "10%"), 3), (("--max-latency", "0.1us"), 3)]
)
def test_limits_decide_what_may_win(limit: tuple[str, str], code: int, tmp_path: Path) -> None:
    out, command = sized().copy(tmp_path / "o")
    said = laconic(*command, *limit)
    assert said.code == code, said.err
    if code:
        assert said.json["status"] == "uncertified"
        assert "no candidate is better than the original within the limits" in said.err
        manifest = json.loads((out / "manifest.json").read_text())
        assert "within the limits" in manifest["certificate"]["withheld"]
        assert "within the limits" in laconic("explain", out).out.replace("\n", " ")
    else:
        assert said.json["best"]["file_bytes"] <= 27_000


@pytest.mark.usefixtures("inline")
def test_a_recipe_that_ruins_the_model_is_a_package_without_a_certificate(tmp_path: Path) -> None:
    path = recipe_file(tmp_path / "r.yaml", [{"step": "PruneChannels", "ratio": 0.9}])
    command = ("shrink", shop("trained"), "--data", "digits", "--no-train", "--out", tmp_path / "o", "--json")
    said = laconic(*command, "--recipe", path, "--budget", "0")
    assert said.code == 3
    assert said.json["certificate"] is None
    assert said.json["best"]["score"] < 0.5
    assert "every candidate fell clearly below the floor" in said.err
    assert package.read(tmp_path / "o").manifest["status"] == "uncertified"
    assert laconic("explain", tmp_path / "o").code == 0


# ---------------------------------------------------------------------------------------------- other models and data


@pytest.mark.usefixtures("inline")
def test_without_labels_it_is_agreement_and_the_report_says_so(tmp_path: Path) -> None:
    options = [word for word in QUICK if word not in ("--max-drop", "5%")]
    said = laconic("shrink", shop("trained"), "--data", shop("unlabelled"), "--out", tmp_path / "o", *options)
    assert said.code == 0, said.err
    assert said.json["certificate"]["metric"] == "agreement"
    assert said.json["certificate"]["max_drop"] == 0.05
    assert said.json["baseline"]["score"] == 1.0
    assert "There were no labels" in (tmp_path / "o" / "report.html").read_text()


@pytest.mark.usefixtures("inline")
def test_an_onnx_file(tmp_path: Path) -> None:
    said = laconic("shrink", stories.onnx_file(), "--data", "digits", "--out", tmp_path / "o", *QUICK)
    assert said.code == 0, said.err
    assert said.json["ratio"]["size"] > 2.5
    assert said.json["baseline"]["score"] == sized().said.json["baseline"]["score"]


@pytest.mark.usefixtures("inline")
def test_a_model_of_two_inputs(tmp_path: Path) -> None:
    out = tmp_path / "o"
    said = laconic("shrink", shop("Sum"), "--data", shop("halves"), "--out", out, *QUICK)
    assert said.code == 0, said.err
    assert set(package.read(out).manifest["inputs"]) == {"left", "right"}
    assert laconic("eval", out, "--data", shop("halves"), "--json").json["agreement"] > 0.98
    pytest.importorskip("openvino")
    found = laconic("export", out, "--target", "openvino", "--out", tmp_path / "x.onnx", "--json").json
    assert found["difference"] < 0.2
    refused = laconic("run", out, __file__)
    assert refused.code == 2
    assert "run gives a model one input only: got left, right" in refused.complaint


@pytest.mark.usefixtures("inline")
def test_openvino(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    said = laconic(
        "shrink", shop("trained"), "--data", "digits", "--out", tmp_path / "o", *QUICK, "--target", "openvino"
    )
    assert said.code == 0, said.err
    assert said.json["target"] == "openvino:cpu,threads=1,batch=1"
    assert said.json["ratio"]["size"] > 2.5


@pytest.mark.usefixtures("inline")
def test_torch_has_no_integers_but_structure(tmp_path: Path) -> None:
    out = tmp_path / "o"
    options = ["macs" if word == "size" else word for word in QUICK]
    said = laconic("shrink", shop("trained"), "--data", "digits", "--out", out, *options, "--target", "torch")
    assert said.code == 0, said.err
    assert {step["step"] for step in said.json["best"]["recipe"]} <= {"PruneChannels", "SpatiallySeparable", "LowRank"}
    assert said.json["best"]["macs"] < said.json["baseline"]["macs"]
    assert said.json["best"]["macs"] < said.json["baseline"]["macs"]
    assert (out / "model.pt2").is_file()
    assert laconic("eval", out, "--data", "digits", "--json").json["n"] == 1310


@pytest.mark.usefixtures("inline")
def test_a_relative_floor_is_a_share_of_the_score(tmp_path: Path) -> None:
    _, command = sized().copy(tmp_path / "o")
    said = laconic(*["2%rel" if word == "3%" else word for word in command])
    score = next(row["score"] for row in sized().rows if row["row"] == "trial")
    assert said.json["certificate"]["max_drop"] == pytest.approx(0.02 * score)
