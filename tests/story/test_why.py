"""Why a package is slow, or wrong: what was done to one layer on purpose is named, and nothing else is."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from laconic.core import Batch, Recipe, Target
from laconic.errors import TargetError
from laconic.pack import package
from laconic.pack.package import Package
from laconic.runtime import onnxruntime, runtime_of
from laconic.runtime.layer_values import cut, matched, observed
from laconic.runtime.nodes import Node
from laconic.steps.prune.channels import PruneChannels
from laconic.steps.quantize.equalize import Equalize
from laconic.steps.quantize.post_training import Quantize
from laconic.steps.quantize.smooth import Smooth
from laconic.story.why_slow import slow
from laconic.story.why_wrong import wrong
from tests.networks import context, inputs_of, network, task_for
from tests.stories import laconic

TARGET = Target("onnxruntime")
Packed = Callable[..., Package]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """Packages of the networks of :mod:`tests.networks` after some steps; each file is made once."""
    made: dict[Any, Path] = {}

    facts: dict[Path, list[Any]] = {}

    def deployed(name: str, steps: tuple[Any, ...], runtime: str) -> Path:
        key = name, Recipe(steps).key, runtime
        if key not in made:
            model, said = Recipe(steps).apply(network(name), task_for(name), context())
            made[key] = tmp_path_factory.mktemp(name) / f"deployed{runtime_of(Target(runtime)).SUFFIX}"
            runtime_of(Target(runtime)).deploy(model, inputs_of(name, 3), made[key], Target(runtime))
            facts[made[key]] = said
        return made[key]

    def get(name: str, *steps: Any, runtime: str = "onnxruntime") -> Package:
        model = deployed(name, steps, runtime)
        return write(model.parent, name, model, deployed(name, (), runtime), facts[model], runtime)

    return get


def write(
    folder: Path, name: str, model: Path, baseline: Path, facts: Sequence[Any] = (), runtime: str = "onnxruntime"
) -> Package:
    inputs = {key: {"shape": list(x.shape[1:]), "dtype": "float32"} for key, x in inputs_of(name, 1).items()}
    manifest = {
        "target": runtime,
        "labels": ["ant", "bee", "cat", "dog"],
        "inputs": inputs,
        "input_shape": next(iter(inputs.values()))["shape"],
        "data": {"fingerprint": task_for(name).fingerprint},
        "baseline": {},
        "recipe": [],
        "facts": list(facts),
        "preprocess": None,
        "trainable": True,
        "seed": 0,
    }
    package.write(folder, manifest, model, baseline, "")
    return package.read(folder)


def tampered(found: Package, name: str, layer: str, folder: Path) -> Package:
    """The package with every other filter (or its codes) of a layer turned to its opposite."""
    proto = onnx.load(found.model_path)
    (tensor,) = [tensor for tensor in proto.graph.initializer if tensor.name == f"{layer}.weight"]
    array = numpy_helper.to_array(tensor).copy()
    array[::2] *= -1
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, folder / "tampered.onnx")
    return write(folder, name, folder / "tampered.onnx", found.baseline_path, found.manifest["facts"])


def on(found: Package, runtime: str) -> Package:
    return replace(found, manifest={**found.manifest, "target": runtime})


# ----------------------------------------------------------------------------------------------------------------- slow


def kinds(found: Any) -> dict[str, list[str]]:
    """The layers of each kind of finding but ``slower``, which is a matter of the machine."""
    named: dict[str, list[str]] = {}
    for finding in found["findings"]:
        if finding["kind"] != "slower":
            named.setdefault(finding["kind"], []).extend(finding["layers"])
    return named


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_layer_left_in_float_between_integers_is_an_island(runtime: str, packed: Packed) -> None:
    pytest.importorskip(runtime)
    found = slow(on(packed("residual", Quantize(exclude=("blocks.1.conv2",))), runtime))
    assert kinds(found) == {"island": ["blocks.1.conv2"]}
    (island,) = [finding for finding in found["findings"] if finding["kind"] == "island"]
    assert island["do"].startswith(
        "quantize blocks.1.conv2, or leave its neighbours in float too: --keep blocks.1.conv1"
    )
    assert 0 < island["time_ms"] < found["after_ms"]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_network_in_integers_has_no_islands(runtime: str, packed: Packed) -> None:
    pytest.importorskip(runtime)
    found = slow(on(packed("residual", Quantize()), runtime))
    assert kinds(found) == {}
    # OpenVINO's profile counts whole microseconds: what converts the input of so small a network may count as none.
    assert found["shares"]["integer"] > found["shares"]["convert"] >= 0 == found["shares"]["float"]
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert f"{found['shares']['integer']:.0%} of it in integer kernels" in found["verdict"]
    rows = {row["name"]: row for row in found["layers"]}
    assert {"stem.0", "blocks.1.down.0", "blocks.2.conv2", "head"} <= set(rows)
    for when in ("before_ms", "after_ms"):
        assert found[when] > 0
        assert sum(row[when] or 0 for row in rows.values()) == pytest.approx(found[when])
    for row in rows.values():
        timed = row["before_ms"] and row["after_ms"]
        assert row["ratio"] == (row["before_ms"] / row["after_ms"] if timed else None)
    assert rows["head"]["arithmetic"] == ["integer"]
    assert rows["q"]["before_ms"] is None


def node(module: str, arithmetic: Any, *reads: str, time_ms: float = 1.0, operator: str = "Conv") -> Node:
    return Node(f"{module}/n", module, operator, arithmetic, tuple(f"{name}/n" for name in reads), time_ms)


@pytest.mark.parametrize(
    ("after", "named"),
    [
        ([node("conv1", "integer"), node("conv2", "float", "conv1", operator="FusedConv")], {"float": ["conv2"]}),
        ([node("conv1", "integer"), node("conv2", "integer", "conv1", time_ms=1.5)], {"slower": ["conv2"]}),
        ([node("conv1", "integer"), node("conv2", "integer", "conv1", time_ms=1.1)], {}),
        (
            [node("conv1", "integer"), node("a", "convert", "conv1"), node("b", "convert", "a"),
             node("gelu", "float", "b", operator="Gelu"), node("conv2", "integer", "gelu")],
            {"island": ["gelu"], "pair": ["conv1", "gelu"]},
        ),
        (
            [node("weights", "convert"), node("gelu", "float", "weights", operator="Gelu"),
             node("a", "convert", "gelu"), node("conv2", "integer", "a")],
            {},
        ),
        (
            [node("conv1", "integer"), node("a", "convert", "conv1"), node("conv2", "float", "a"),
             node("b", "convert", "conv2"), node("fc1", "integer", "b", operator="QGemm")],
            {"float": ["conv2"]},
        ),
    ],
    ids=["no kernel", "slower", "within the noise", "rounded for nothing", "a weight is no entry", "one finding"],
)  # fmt: skip
def test_what_is_found(
    after: Sequence[Node], named: dict[str, list[str]], packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = packed("plain", Quantize())
    before = [node("conv1", "float"), node("conv2", "float", "conv1")]
    ran = {found.baseline_path: before, found.model_path: list(after)}
    monkeypatch.setattr(onnxruntime, "executed", lambda path, target, inputs: ran[path])
    findings = slow(found)["findings"]
    assert {finding["kind"]: finding["layers"] for finding in findings} == named
    assert all(finding["do"] and "OTHER" not in finding["do"] for finding in findings)


def test_a_layer_that_the_runtime_rounds_unasked(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    found = packed("plain")
    monkeypatch.setattr(onnxruntime, "executed", lambda path, target, inputs: [node("conv1", "integer")])
    assert kinds(slow(found)) == {"rounded": ["conv1"]}


# ---------------------------------------------------------------------------------------------------------------- wrong


def why_wrong(found: Package, name: str) -> Any:
    return wrong(found, lambda package: task_for(name))


@pytest.mark.parametrize("layer", ["stem.0", "blocks.2.conv1", "head"])
def test_the_layer_that_was_tampered_with_is_where_noise_enters(layer: str, packed: Packed, tmp_path: Path) -> None:
    good = packed("residual", Quantize())
    found = why_wrong(tampered(good, "residual", layer, tmp_path), "residual")
    assert {"blocks.1 (Add)", "blocks.1.down.0"} <= {row["name"] for row in found["layers"]}
    first, second = found["entries"][:2]
    assert (first["name"], first["do"]) == (layer, f"--keep {layer} leaves it in float")
    assert first["own_db"] < 6
    assert second["own_db"] > 25
    assert min(row["own_db"] for row in why_wrong(good, "residual")["layers"]) > 25
    rows = {row["name"]: row for row in found["layers"]}
    assert rows["head"]["snr_db"] < 25, "what follows is noisy, though not of its own"


def test_a_layer_has_no_noise_of_its_own_where_nothing_was_done_to_it(packed: Packed, tmp_path: Path) -> None:
    found = why_wrong(tampered(packed("plain"), "plain", "conv2", tmp_path), "plain")
    own = {row["name"]: row["own_db"] for row in found["layers"]}
    assert own.pop("conv2") < 6
    assert set(own) == {"conv1", "fc1", "fc2"}
    assert min(own.values()) > 110


@pytest.mark.parametrize(("name", "layer"), [("plain", "conv2"), ("residual", "blocks.0.conv2")])
@pytest.mark.parametrize("moving", [Equalize(), Smooth()], ids=["Equalize", "Smooth"])
def test_factors_that_were_moved_are_no_noise(
    name: str, layer: str, moving: Any, packed: Packed, tmp_path: Path
) -> None:
    """With high biases too, which Equalize takes from one layer and gives to the next."""
    good = packed(name, moving, Quantize())
    assert any(max(factors) / min(factors) > 1.2 for _, _, factors, _ in good.manifest["facts"][0]["moved"])
    told = min(row["own_db"] for row in why_wrong(good, name)["layers"])
    assert told > 18
    first, second = why_wrong(tampered(good, name, layer, tmp_path), name)["entries"][:2]
    assert first["name"] == layer
    assert first["own_db"] < 10
    assert second["own_db"] > 18
    untold = replace(good, manifest={**good.manifest, "facts": []})
    assert min(row["own_db"] for row in why_wrong(untold, name)["layers"]) < told - 3, "it would be noise"


def test_sums_that_were_moved_are_no_noise(tmp_path: Path) -> None:
    model = network("mlp")
    with torch.no_grad():
        model.get_submodule("1").bias += 20
    path, baseline = tmp_path / "made.onnx", tmp_path / "float.onnx"
    changed, facts = Recipe((Equalize(), Quantize())).apply(model, task_for("mlp"), context())
    for one, where in ((changed, path), (model, baseline)):
        onnxruntime.deploy(one, inputs_of("mlp", 3), where, TARGET)
    assert facts[0]["absorbed"]["1"] == 24
    found = why_wrong(write(tmp_path, "mlp", path, baseline, facts), "mlp")
    assert min(row["own_db"] for row in found["layers"]) > 25


def test_channels_that_were_copied_are_no_noise(tmp_path: Path) -> None:
    model = network("plain")
    with torch.no_grad():
        model.get_submodule("bn1").weight[:3] = 0
        model.get_submodule("bn1").bias[:3] = -1
    path, baseline = tmp_path / "made.onnx", tmp_path / "float.onnx"
    changed, facts = Recipe((Quantize(),)).apply(model, task_for("plain"), context())
    for one, where in ((changed, path), (model, baseline)):
        onnxruntime.deploy(one, inputs_of("plain", 3), where, TARGET)
    assert [name for name, *_ in facts[0]["copied"]].count("conv1") > 0
    told, untold = (
        why_wrong(write(tmp_path, "plain", path, baseline, said), "plain")["layers"] for said in (facts, ())
    )
    assert min(row["own_db"] for row in told) > 30
    assert min(row["own_db"] for row in untold) < 15


def test_noise_is_what_the_two_files_differ_by(packed: Packed) -> None:
    found = packed("tokens", Quantize())
    x = {"x": task_for("tokens").search.read(range(32)).inputs["x"]}
    wanted, got = (onnxruntime.open_file(p, TARGET)(x)["output"] for p in (found.baseline_path, found.model_path))
    rows = {row["name"]: row for row in why_wrong(found, "tokens")["layers"]}
    assert rows["head"]["snr_db"] == pytest.approx(
        10 * np.log10((wanted**2).sum() / ((got - wanted) ** 2).sum()), abs=1e-3
    )
    assert set(rows) == {
        *("patches", "qkv", "matmul, call 1", "matmul, call 2", "proj", "add, call 1"),
        *("mlp.1", "mlp.3", "add, call 2", "head"),
    }


def test_what_is_observed_still_runs_in_integers(packed: Packed, tmp_path: Path) -> None:
    found = packed("residual", Quantize())
    original, compressed = onnx.load(found.baseline_path), onnx.load(found.model_path)
    layers, unmatched = matched(original, compressed)
    assert unmatched == []
    values = [layer.compressed for layer in layers]
    onnx.save(observed(original, [layer.original for layer in layers])[0], tmp_path / "original.onnx")
    outputs = onnxruntime.open_file(tmp_path / "original.onnx", TARGET)(inputs_of("residual", 1))
    shapes = {layer.compressed: outputs[layer.original].shape for layer in layers}
    for proto in (observed(compressed, values)[0], cut(compressed, shapes)[0]):
        onnx.save(proto, tmp_path / "copy.onnx")
        operators = onnxruntime.optimized_operators(tmp_path / "copy.onnx", TARGET)
        assert operators["QLinearConv"] == 8
        assert not {"Conv", "FusedConv", "Gemm", "FusedGemm"} & set(operators)


def test_pruned_layers_are_compared_where_they_match(packed: Packed) -> None:
    found = why_wrong(packed("plain", PruneChannels(layers={"conv1": 0.5})), "plain")
    assert found["other_shape"] == ["conv1"]
    assert [row["name"] for row in found["layers"]] == ["conv2", "fc1", "fc2"]
    own = {row["name"]: row["own_db"] for row in found["layers"]}
    assert own["conv2"] < 30, "what was lost in conv1 shows at the next layer"
    assert own["fc1"] > 110


def test_classes_and_flips(packed: Packed, tmp_path: Path) -> None:
    found = tampered(packed("plain", Quantize()), "plain", "fc1", tmp_path)
    said = why_wrong(found, "plain")
    batch = task_for("plain").search.read(range(64))
    before, after = (
        onnxruntime.open_file(path, TARGET)(batch.inputs)["output"].argmax(1)
        for path in (found.baseline_path, found.model_path)
    )
    flips = np.flatnonzero(before != after)
    assert len(flips) > 0
    wanted = batch.targets
    assert wanted is not None
    assert said["flips"] == [
        {"sample": f"search {i}", "wanted": wanted[i], "before": before[i], "after": after[i]} for i in flips
    ]
    assert (said["parts"], said["n"]) == (["search"], 64)
    assert said["before"] == pytest.approx((before == wanted).mean())
    assert said["after"] == pytest.approx((after == wanted).mean())
    assert said["labels"] == {"0": "ant", "1": "bee", "2": "cat", "3": "dog"}
    lost = [row["lost"] for row in said["classes"]]
    assert lost == sorted(lost, reverse=True)
    for row in said["classes"]:
        mine = wanted == row["class"]
        assert row["n"] == mine.sum()
        assert row["before"] == pytest.approx((before == wanted)[mine].mean())
        assert row["after"] == pytest.approx((after == wanted)[mine].mean())


class Shut:
    """A holdout that nobody may read."""

    def __len__(self) -> int:
        return 64

    def read(self, indices: Sequence[int]) -> Batch:
        raise AssertionError("the holdout was opened")


def test_the_holdout_stays_shut_unless_the_data_are_others(packed: Packed) -> None:
    found, task = packed("plain", Quantize()), replace(task_for("plain", labels=False), holdout=Shut())
    said = wrong(found, lambda package: task)
    assert (said["parts"], said["before"]) == (["search"], 1.0)
    with pytest.raises(AssertionError, match="the holdout was opened"):
        wrong(found, lambda package: replace(task, fingerprint="others"))


# ---------------------------------------------------------------------------------------------------------- the command


def test_a_package_for_torch_is_refused(packed: Packed) -> None:
    found = packed("plain", runtime="torch")
    assert laconic("explain", found.folder, "--why", "slow").complaint == (
        "torch does not say which kernels ran, nor for how long: got model.pt2, wanted a package for onnxruntime or "
        "openvino"
    )
    with pytest.raises(TargetError, match=r"files of torch do not show the values of their layers: got model\.pt2"):
        why_wrong(found, "plain")


@pytest.mark.parametrize("options", [["--why", "wrong"], ["--data", "digits"], ["--why", "slow", "--data", "digits"]])
def test_samples_are_for_wrong(options: list[str], packed: Packed) -> None:
    said = laconic("explain", packed("plain", Quantize()).folder, *options)
    assert said.code == 2
    assert said.complaint.startswith("--why wrong and --data go together; laconic explain")


def test_slow_for_people_and_programs(packed: Packed) -> None:
    folder = packed("residual", Quantize(exclude=("blocks.1.conv2",))).folder
    said = laconic("explain", folder, "--why", "slow")
    assert said.code == 0, said.err
    assert max(map(len, said.out.splitlines())) <= 80
    words = " ".join(said.out.split())
    assert "blocks.1.conv2 in float between integers" in words
    assert words.endswith("%.")
    assert "QLinearConv" in words
    assert laconic("explain", folder, "--why", "slow", "--json").json["why"] == "slow"


def test_wrong_for_people_and_programs(packed: Packed, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
            import numpy as np

            def samples():
                random = np.random.default_rng(3)
                return random.standard_normal((60, 3, 8, 8)).astype(np.float32), np.arange(60) % 4
        """)
    )
    found = tampered(packed("plain", Quantize()), "plain", "conv2", tmp_path)
    command = ("explain", found.folder, "--why", "wrong", "--data", f"{tmp_path / 'mine.py'}:samples")
    said = laconic(*command)
    assert said.code == 0, said.err
    assert max(map(len, said.out.splitlines())) <= 80
    words = " ".join(said.out.split())
    assert "on 60 samples of train and search and holdout" in words
    assert "noise enters at conv2" in words
    assert "--keep conv2 leaves it in float" in words
    assert "samples decided differently" in words
    assert "row " in words
    assert laconic(*command, "--json").json["entries"][0]["name"] == "conv2"
