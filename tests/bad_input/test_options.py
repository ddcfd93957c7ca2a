"""Options, recipes and targets that cannot be used: each with one line that says what was wanted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.bad_input.conftest import Refused
from tests.stories import home, laconic, shop, sized

OPTIONS = [
    ("--max-drop 1", "--max-drop cannot be read: got '1', wanted a percentage, for example 1% or 95%"),
    ("--max-drop x%", "--max-drop cannot be read: got 'x%'"),
    ("--max-drop -1%", "--max-drop"),
    ("--max-drop 0%", "a floor out of range: got 0.0, wanted a drop above 0 % and below 100 %"),
    ("--max-drop 100%", "a floor out of range"),
    ("--confidence 2", "--confidence cannot be read"),
    ("--confidence 100%", "a confidence out of range"),
    ("--confidence 40%", "a confidence out of range"),
    ("--budget 10", "a budget that cannot be read: got '10', wanted for example 10m, 90s, 40trials or 0"),
    ("--budget 1.5trials", "a budget that cannot be read"),
    ("--budget soon", "a budget that cannot be read"),
    ("--budget 0", "--budget 0 without --recipe leaves nothing to do; give a budget or a recipe"),
    ("--budget 0s", "--budget 0 without --recipe leaves nothing to do"),
    ("--budget 0trials", "--budget 0 without --recipe leaves nothing to do"),
    ("--max-size big", "a limit that cannot be read: got 'big', wanted for example 1MB or 60%"),
    ("--max-size 0MB", "a limit that cannot be read"),
    ("--max-size 5ms", "a limit that cannot be read"),
    ("--max-latency 5", "a limit that cannot be read: got '5', wanted for example 5ms or 60%"),
    ("--max-latency 1MB", "a limit that cannot be read"),
    ("--minimize speed", "unknown objective: got 'speed', wanted latency, size or macs"),
    ("--seed one", "argument --seed: invalid int value: 'one'"),
    ("--seed -1", "a seed out of range: got -1"),
    ("--max-corrupt 5", "--max-corrupt cannot be read"),
    ("--expect-score much", "--expect-score cannot be read"),
    ("--objective size", "unrecognized arguments: --objective size; see 'laconic --help'"),
    ("--budge 5m", "unrecognized arguments: --budge 5m"),  # no abbreviation is completed
    ("--target tflite", "unknown runtime: got 'tflite', wanted one of executorch, litert, onnxruntime, openvino"),
    ("--target onnxruntime:gpu", "a device that onnxruntime does not have: got 'gpu', wanted cpu"),
    ("--target onnxruntime:cpu,threads=0", "a target's option cannot be read: got 'threads=0'"),
    ("--target onnxruntime:cpu,cores=2", "a target's option cannot be read: got 'cores=2'"),
    ("--target :cpu", "a target without a runtime"),
    ("--keep backbone.*", "--keep names no layer: got 'backbone.*', wanted a glob of conv1, conv2, conv3, fc"),
]


@pytest.mark.parametrize(("options", "words"), OPTIONS, ids=[options for options, _ in OPTIONS])
def test_options(refused: Refused, options: str, words: str) -> None:
    assert words in refused(*options.split(maxsplit=1))


def test_a_floor_that_guessing_meets(refused: Refused) -> None:
    said = refused("--max-drop", "95%")
    assert re.search(r"the floor is not above guessing: got 9\d\.\d%", said)
    assert "less 95.0%, wanted more than 10.2%; give a smaller --max-drop" in said


def test_a_budget_in_which_nothing_can_be_tried(refused: Refused) -> None:
    assert "the budget ended before a candidate was tried; give a larger --budget" in refused("--budget", "0.01s")


def test_a_processor_for_which_the_machine_has_no_device(refused: Refused) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    assert "torch sees no CUDA device here" in refused("--target", "torch:cuda")


def test_a_model_with_which_nothing_can_be_done(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "linear.py"
    path.write_text(f"""
import sys
sys.path.insert(0, {str(home())!r})
import torch
from shop import digits


def net():
    x, y = digits()
    x = torch.as_tensor(x).flatten(1)
    wanted = torch.nn.functional.one_hot(torch.as_tensor(y)).float()
    w = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), wanted).solution
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    model[1].weight.data, model[1].bias.data = w[:-1].T.contiguous(), w[-1]
    return model
""")
    said = refused("--target", "torch", "--no-train", "--keep", "1", model=f"{path}:net")
    assert "there is nothing to try: got neither integers on torch:cpu" in said


# ------------------------------------------------------------------------------------------------------------- recipes

RECIPES = [
    ("- step: Distil", "unknown step: got 'Distil', wanted one of AdaRound, Binary, CP, Cast, CastWeights, Cluster"),
    ("- step: Quantize\n  width: 4", "unknown setting of Quantize: got 'width', wanted one of ranges, bias_correction"),
    ("- step: Quantize\n  bits: 1", "Quantize of bits: got 1, wanted 2 to 8 bits"),
    ("- step: Quantize\n  ranges: max", "ranges of Quantize: got 'max', wanted minmax or percentile or mse"),
    ("- step: PruneChannels\n  ratio: 1.5", "PruneChannels of ratio: got 1.5, wanted 0 up to, not including, 1"),
    ("- step: FineTune\n  epochs: many", "epochs of FineTune: got 'many', wanted a number"),
    ("step: Quantize", "a recipe is a list of steps: got dict"),
    ("", "a recipe is a list of steps: got NoneType"),
    ("[]", "the recipe has no steps"),
    ("- Quantize", "a step without a name: got 'Quantize'"),
    ("{{", "cannot be read"),
    ("- step: Quantize\n- step: Quantize", "Quantize comes twice in this recipe; keep one of them"),
    ("- step: Quantize\n- step: PruneChannels\n  ratio: 0.5", "PruneChannels after Quantize; prune first"),
    ("- step: PruneChannels\n  layers: {head: 0.5}", "PruneChannels of a layer that leads no group: got head"),
]


@pytest.mark.parametrize(("text", "words"), RECIPES, ids=[words[:40] for _, words in RECIPES])
def test_recipes(refused: Refused, text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert words in refused("--recipe", path, "--budget", "0")


def test_recipe_files(refused: Refused, tmp_path: Path) -> None:
    assert "the recipe nowhere.yaml cannot be read" in refused("--recipe", "nowhere.yaml", "--budget", "0")
    assert "cannot be read" in refused("--recipe", tmp_path, "--budget", "0")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refused("--recipe", tmp_path / "binary.yaml", "--budget", "0")


def test_training_in_a_recipe_without_training_data(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("- step: FineTune\n")
    said = refused("--recipe", tmp_path / "r.yaml", "--budget", "0", "--no-train")
    assert "FineTune needs training data; run without --no-train, or leave FineTune out" in said


# ------------------------------------------------------------------------------------------------------- other commands


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: COMMAND; see 'laconic --help'"),
        (["compress"], "argument COMMAND: invalid choice: 'compress'"),
        (["shrink"], "the following arguments are required: MODEL, --data, --out; see 'laconic shrink --help'"),
        (["eval", "OUT"], "the following arguments are required: --data"),
        (["eval", "OUT", "--data", "digits", "--max-drop", "1"], "--max-drop cannot be read"),
        (["eval", "NET", "--data", "digits", "--max-drop", "1"], "--max-drop cannot be read"),
        (["eval", "OUT", "--data", "digits", "--target", "tflite"], "unknown runtime: got 'tflite'"),
        (["eval", "OUT", "--data", "digits", "--target", "torch"], "torch does not read this package: got model.onnx"),
        (["eval", "HERE", "--data", "digits"], "not a package: got"),
        (["eval", "nowhere", "--data", "digits"], "a model that cannot be read: got 'nowhere'"),
        (["run", "OUT"], "the following arguments are required: INPUT"),
        (["profile", "NET"], "this model does not say what its input is; give --input, for example --input 3x224x224"),
        (["profile", "NET", "--input", "1x8"], "the model does not take these samples"),
        (["profile", "NET", "--input", "1xax8"], "--input cannot be read: got '1xax8'"),
        (["profile", "NET", "--input", "1x0x8"], "--input cannot be read"),
        (["profile", "zoo:nothing"], "unknown network of the zoo: got nothing"),
        (["profile", "HERE"], "not a package: got"),
        (["profile", "NET", "--input", "1x8x8", "--cache", "1"], "--cache cannot be read: got '1', wanted a size"),
        (["profile", "NET", "--input", "1x8x8", "--cache", "-1MB"], "--cache"),
        (["profile", "NET", "--input", "1x8x8", "--top", "0"], "--top is too small: got 0, wanted at least 1"),
        (["profile", "NET", "--input", "1x8x8", "--target", "tflite"], "unknown runtime: got 'tflite'"),
        (["profile", "NET", "--input", "1x8x8", "--data", "digits"], "--data and --input both say what the input is"),
        (["profile", "NET", "--input", "1x8x8", "--out", "HERE/file"], "--out is no folder"),
        (["profile", "OUT", "--input", "1x8x8"], "a package says what its input is"),
        (["profile", "OUT", "--target", "torch"], "torch does not read this package: got model.onnx"),
        (["export", "OUT", "--target", "tflite", "--out", "HERE/x"], "unknown runtime: got 'tflite'"),
        (["export", "OUT", "--target", "onnxruntime", "--out", "HERE"], "--out is a folder"),
        (["export", "OUT", "--target", "onnxruntime", "--out", "HERE/file/x"], "cannot be written"),
        (["export", "HERE", "--target", "onnxruntime", "--out", "HERE/x"], "not a package: got"),
        (["explain", "HERE"], "not a package: got"),
        (["explain", "nowhere"], "not a package: got nowhere, wanted a folder with manifest.json"),
        (["doctor", "--all"], "unrecognized arguments: --all"),
    ],
    ids=str,
)
def test_other_commands(arguments: list[str], words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    places = {"OUT": str(sized().out), "NET": shop("trained")}
    said = laconic(*[places.get(word, word.replace("HERE", str(tmp_path))) for word in arguments])
    assert (said.code, said.out) == (2, "")
    assert words in said.complaint
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_package_that_was_tampered_with(tmp_path: Path) -> None:
    out, _ = sized().copy(tmp_path / "out")
    (out / "model.lac").write_bytes((out / "baseline.onnx").read_bytes())
    for command in (["eval", out, "--data", "digits"], ["run", out, out / "model.lac"], ["explain", out]):
        said = laconic(*command)
        assert said.code == 2
        assert "model.lac is not the file that was certified: its hash differs from the manifest's" in said.complaint
