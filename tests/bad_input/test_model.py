"""Models that cannot be used: each with one line that says what is wrong with it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.bad_input.conftest import Refused
from tests.stories import home, onnx_file, shop, zoo


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken", "the weights are not finite: tensor fc.weight: got 1 of 640 values NaN or infinite"),
        ("no_model", "gave no model: got dict, wanted a torch.nn.Module with its weights loaded"),
        ("raising", "ValueError: the weights are on the other disk more"),
        ("absent", "no function 'absent' in"),
        ("Twice", "a model whose output is not what the task needs: got 2 outputs, wanted one, of shape (n, classes)"),
        ("map_of_classes", "a model whose output is not what the task needs: got shape"),
        ("five_classes", "a label outside the model's classes: got"),
        ("coloured", "expected input[2, 1, 8, 8] to have 3 channels, but got 1 channels instead"),
        ("larger", "the model does not take these samples: RuntimeError"),
        ("Sum", "the model does not take these samples: TypeError"),
    ],
)
def test_python_models(refused: Refused, name: str, words: str) -> None:
    assert words in refused(model=shop(name))


def test_a_model_that_guesses(refused: Refused) -> None:
    said = refused(model=shop("guessing"))
    assert "on 299 samples, where guessing gives 10.2%" in said
    assert "check pre-processing (--preprocess), the order of the labels and the weights" in said


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Branching", "torch cannot export the model: GuardOnDataDependentSymNode"),
        ("Singular", "torch cannot write the model as ONNX: DispatchError: No ONNX function found for"),
    ],
)
def test_operators_that_the_target_lacks(refused: Refused, name: str, words: str) -> None:
    said = refused(model=shop(name))
    assert said.startswith("the original cannot be deployed on onnxruntime:cpu,threads=1,batch=1: ")
    assert words in said
    if name == "Singular":
        assert "_linalg_svd" in said
    else:
        assert re.search(r"shop\.py:\d+: return self\.net\(x\) if x\.sum\(\)\.item\(\) > 0", said)


def test_an_operator_that_onnx_runtime_lacks(refused: Refused, tmp_path: Path) -> None:
    model = onnx.load(onnx_file())
    output = model.graph.output[0]
    model.graph.node.append(helper.make_node("Frobnicate", [output.name], ["odd"], domain="my.operators"))
    model.opset_import.append(helper.make_opsetid("my.operators", 1))
    output.name = "odd"
    onnx.save(model, tmp_path / "odd.onnx")
    assert "my.operators:Frobnicate" in refused(model=tmp_path / "odd.onnx")


def test_an_operator_that_openvino_lacks(refused: Refused, tmp_path: Path) -> None:
    """One of ONNX Runtime's own, which OpenVINO does not know."""
    pytest.importorskip("openvino")
    model = onnx.load(onnx_file())
    output = model.graph.output[0]
    model.graph.initializer.append(numpy_helper.from_array(-9 * np.eye(10, dtype=np.float32), "corners"))
    model.graph.node.append(helper.make_node("CDist", [output.name, "corners"], ["odd"], domain="com.microsoft"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    output.name = "odd"
    onnx.save(model, tmp_path / "odd.onnx")
    said = refused("--target", "openvino", model=tmp_path / "odd.onnx")
    assert "the original cannot be deployed on openvino:cpu" in said
    assert "CDist" in said


def test_onnx_files(refused: Refused, tmp_path: Path) -> None:
    assert "no such file: got nowhere.onnx, wanted an ONNX file" in refused(model="nowhere.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    assert "the file cannot be read as ONNX" in refused(model=tmp_path / "text.onnx")
    model = onnx.load(onnx_file())
    weights = next(t for t in model.graph.initializer if len(t.dims) == 4)
    values = numpy_helper.to_array(weights).copy()
    values.flat[3] = np.nan
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    onnx.save(model, tmp_path / "nan.onnx")
    assert "the weights are not finite: tensor" in refused(model=tmp_path / "nan.onnx")


@pytest.mark.parametrize(
    "name", ["model.pkl", "model.pt", "model.pth", "zoo:digits-cnn-16@w.pth", "timm:resnet18@w.bin"]
)
def test_pickles_are_refused_with_the_way_to_convert_them(refused: Refused, name: str) -> None:
    said = refused(model=name)
    assert "is a pickle, which laconic does not open" in said
    assert "weights_only=True" in said
    assert ".safetensors" in said


def test_names_and_files_that_are_not_there(refused: Refused, tmp_path: Path) -> None:
    assert "unknown network of the zoo: got lenet5-caffe" in refused(model="zoo:lenet5-caffe")
    assert "did you mean lenet-5-caffe?" in refused(model="zoo:lenet5-caffe")
    assert "no such weights file: got w.safetensors" in refused(model="zoo:digits-cnn-16@w.safetensors")
    fitting = f"zoo:digits-cnn-32@{home() / 'net.safetensors'}"
    assert "the weights do not fit the model" in refused(model=fitting)
    assert "a model that cannot be read: got 'resnet18'" in refused(model="resnet18")
    assert "no such file: got 'nowhere.py'" in refused(model="nowhere.py:net")
    (tmp_path / "wrong.py").write_text("def net(:\n")
    assert "wrong.py:1: SyntaxError: invalid syntax" in refused(model=f"{tmp_path / 'wrong.py'}:net")


def test_a_score_that_is_not_what_was_expected(refused: Refused) -> None:
    said = refused("--expect-score", "75%")
    assert re.search(r"the original's score is not what --expect-score says: got 9\d\.\d%", said)
    assert "wanted 75.0%; check pre-processing" in said


def test_the_expected_score_within_its_interval_is_met(refused: Refused) -> None:
    """The same run gets past that check, and is refused for what comes after it."""
    assert "the floor is not above guessing" in refused("--expect-score", "98%", "--max-drop", "90%")


def test_wrong_preprocessing_is_seen_by_what_the_model_scores(refused: Refused, tmp_path: Path) -> None:
    from tests.stories import pictures

    path = tmp_path / "wrong.yaml"
    path.write_text("channels: L\nresize: [8, 8]\nmean: 30.0\nstd: 0.001\n")
    said = refused("--preprocess", path, model=zoo(), data=pictures())
    assert "check pre-processing" in said
