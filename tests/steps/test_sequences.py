"""Every technique on recurrent networks and on torch's own transformer layers; test_steps.py has the convolutions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from laconic import surgery
from laconic.core import Facts, Recipe, Step, Target
from laconic.runtime import onnxruntime, openvino, runtime_of
from laconic.runtime.difference import relative_error
from laconic.runtime.integers import kept_as_floats
from laconic.steps import STEPS
from laconic.steps.quantize.post_training import Quantize
from laconic.steps.quantize.weights import QuantizeWeights
from tests.networks import INTEGER, context
from tests.sequences import sequence_network, sequence_task, sequences

TARGET = Target("onnxruntime")
TRAITS = dataclasses.replace(INTEGER, precisions=("f32", "bf16"))
TRAINED = {"epochs": 1, "batch": 16}
RECIPES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "Quantize": [("Quantize", {})],
    "QuantizeWeights": [("QuantizeWeights", {"group": 16})],
    "GPTQ": [("Quantize", {}), ("QuantizeWeights", {}), ("GPTQ", {})],
    "AdaRound": [("Quantize", {}), ("QuantizeWeights", {}), ("AdaRound", {"iterations": 5})],
    "Reconstruct": [("Quantize", {}), ("Reconstruct", {"iterations": 5})],
    "LSQ": [("Quantize", {}), ("QuantizeWeights", {}), ("LSQ", TRAINED)],
    "Ternary": [("Ternary", TRAINED)],
    "Binary": [("Binary", TRAINED)],
    "Binary, activations": [("Binary", {"activations": True, **TRAINED})],
    "Cluster": [("Cluster", TRAINED)],
    "ProductQuantize": [("ProductQuantize", {"entries": 8})],
    "Smooth": [("Smooth", {}), ("Quantize", {})],
    "Equalize": [("Equalize", {}), ("Quantize", {})],
    "Cast": [("Cast", {})],
}
DEPLOYED = {
    "lstm": ("Quantize", "QuantizeWeights", "Ternary", "Cluster"),
    "gru": ("Cluster",),
    "encoder": ("Quantize", "QuantizeWeights", "Binary, activations"),
}
"""The files that are made: others hold the same kinds of nodes."""
ALL_WEIGHTS = ("QuantizeWeights", "GPTQ", "AdaRound", "LSQ", "Cluster")


def applied(name: str, *steps: Step) -> tuple[nn.Module, list[Facts]]:
    teacher = sequence_network(name)
    given = context(traits=TRAITS, reference=lambda inputs: surgery.call(teacher, inputs))
    return Recipe(steps).apply(teacher, sequence_task(), given)


def output_of(model: nn.Module, inputs: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        return surgery.call(model.eval(), {k: torch.as_tensor(x) for k, x in inputs.items()})["output"].numpy()


def changed(model: nn.Module) -> set[str]:
    return {n for n, x in surgery.weighted_layers(model).items() if parametrize.is_parametrized(x, "weight")}


@pytest.mark.parametrize("name", ["lstm", "gru", "encoder"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_technique_runs_and_the_file_computes_what_the_model_computes(
    recipe: str, name: str, tmp_path: Path
) -> None:
    model, _ = applied(name, *(STEPS[step](**settings) for step, settings in RECIPES[recipe]))
    inputs = sequences(9, seed=5)
    wanted, layers = output_of(model, inputs), set(surgery.weighted_layers(model))
    assert np.isfinite(wanted).all()
    if recipe in ALL_WEIGHTS:
        assert changed(model) == layers
    elif recipe in ("Ternary", "Binary"):
        assert changed(model) == layers - {"first", "head"}
    elif name == "encoder":
        assert len(changed(model)) >= (6 if recipe != "Cast" else 0)
    else:
        assert changed(model) <= {"first", "head"}
    if recipe not in DEPLOYED[name]:
        return
    facts = onnxruntime.deploy(model, sequences(3), tmp_path / "model.onnx", TARGET)
    found = onnxruntime.open_file(tmp_path / "model.onnx", TARGET)(inputs)["output"]
    assert relative_error(found, wanted) < (2e-2 if "short_weights" in facts else 1e-4)
    if name != "encoder":
        kinds = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
        assert sum(kind in ("LSTM", "GRU", "DynamicQuantizeLSTM") for kind in kinds) == 1, "no unrolled loop"


@pytest.mark.parametrize(("name", "bits", "stored"), [("lstm", 8, None), ("both ways", 2, 2.0)])
def test_an_lstm_runs_in_integers(name: str, bits: int, stored: float | None, tmp_path: Path) -> None:
    model, _ = applied(name, QuantizeWeights(bits=bits, group=0))
    inputs, path = sequences(9, seed=5), tmp_path / "model.onnx"
    facts = onnxruntime.deploy(model, sequences(3), path, TARGET)
    (row,) = [row for row in facts["short_weights"] if row["kind"] == "recurrent"]
    matrices = len(surgery.weighted_layers(model)) - 2
    assert row == {
        **{"kind": "recurrent", "bits": bits, "group": 0},
        **{"layers": matrices, "computed": "DynamicQuantizeLSTM"},
    }
    assert list(facts.get("code_bits", {}).values()) == ([] if stored is None else [stored])
    assert relative_error(onnxruntime.open_file(path, TARGET)(inputs)["output"], output_of(model, inputs)) < 2e-2
    operators = onnxruntime.optimized_operators(path, TARGET)
    assert operators["DynamicQuantizeLSTM"] == matrices // (4 if name == "both ways" else 2)
    assert "LSTM" not in operators


@pytest.mark.parametrize(("name", "group"), [("lstm", 16), ("gru", 0)])
def test_recurrent_weights_are_stored_short_and_computed_in_float(name: str, group: int, tmp_path: Path) -> None:
    """To the bit, groups that do not divide the inputs among them."""
    model, _ = applied(name, QuantizeWeights(group=group, exclude=("first", "head")))
    inputs, path = sequences(9, seed=5), tmp_path / "model.onnx"
    facts = openvino.deploy(model, sequences(3), path, Target("openvino"))
    assert {row["computed"] for row in facts["short_weights"]} == {"float32"}
    for runtime in (onnxruntime, openvino):
        found = runtime.open_file(path, TARGET)(inputs)["output"]
        assert relative_error(found, output_of(model, inputs)) < 1e-6
    stored = {t.name: t for t in onnx.load(path).graph.initializer}
    for layer in ("rnn.ih_l0", "rnn.hh_l0"):
        assert stored[f"{layer}.weight"].data_type == onnx.TensorProto.INT4


def test_quantize_says_what_is_left_in_float() -> None:
    _, (facts,) = applied("lstm", Quantize())
    assert facts["left_in_float"] == ["rnn/lstm#0"]
    assert {name for name, _ in facts["layers"]} == {"first", "head"}
    _, facts = applied("gru", QuantizeWeights(), STEPS["GPTQ"]())
    assert facts[1]["left"] == ["rnn.ih_l0", "rnn.hh_l0"], "rounded to the nearest"
    assert facts[1]["layers"] == 2


def test_what_a_file_says_that_its_weights_are_computed_in(tmp_path: Path) -> None:
    """In the runtime's own graph; LiteRT's files keep floats, and say so."""
    model, _ = applied("lstm", QuantizeWeights(bits=4, group=0, exclude=("first", "head")))
    facts = onnxruntime.deploy(model, sequences(3), tmp_path / "model.onnx", TARGET)
    assert {"stored_bits": 4, "computed": "int8", "layers": 1} in facts["computed"]
    model, _ = applied("gru", QuantizeWeights(bits=4, group=0, exclude=("first", "head")))
    for runtime in (onnxruntime, openvino):
        facts = runtime.deploy(model, sequences(3), tmp_path / "model.onnx", TARGET)
        assert {"stored_bits": 4, "computed": "float32", "layers": 1} in facts["computed"]
    assert kept_as_floats(model) == [{"stored_bits": 32, "computed": "float32", "layers": 2, "rounded": True}]
    assert kept_as_floats(applied("gru", Quantize())[0]) == []


@pytest.mark.parametrize(("name", "runtime"), [("lstm", "litert"), ("gru", "executorch"), ("encoder", "litert")])
def test_the_other_runtimes_take_them_too(name: str, runtime: str, tmp_path: Path) -> None:
    pytest.importorskip({"litert": "litert_torch", "executorch": "executorch"}[runtime])
    target, inputs = Target(runtime), sequences(3, seed=5)
    path = tmp_path / f"model{runtime_of(target).SUFFIX}"
    model = sequence_network(name)
    runtime_of(target).deploy(model, inputs, path, target)
    assert relative_error(runtime_of(target).open_file(path, target)(inputs)["output"], output_of(model, inputs)) < 1e-5
