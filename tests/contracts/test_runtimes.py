"""What every runtime promises, checked over the table of runtimes; each check is shown to catch one that breaks it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Arrays, Facts, Recipe, Target, Traits
from laconic.errors import DeployError, MissingExtraError, TargetError
from laconic.runtime import RUNTIMES, Runtime, named, runtime_of
from laconic.runtime.difference import relative_error
from laconic.runtime.session import Session
from laconic.steps.quantize.post_training import Quantize
from tests.networks import NETWORKS, context, inputs_of, network, task_for, tensors

Wanted = dict[str, np.ndarray]


OPTIONAL = {
    "executorch": ("executorch.exir",),
    "litert": ("litert_torch", "ai_edge_litert"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
}
"""The modules that a runtime needs and that need not be installed."""

FIXED_BATCH = {"executorch", "litert"}
"""The runtimes whose files hold the batch that they were written for."""


@pytest.fixture(params=RUNTIMES)
def target(request: pytest.FixtureRequest) -> Target:
    for module in OPTIONAL.get(request.param, ()):
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            pytest.skip(f"{module} is not installed")
    return Target(request.param, named(request.param).DEVICES[0])


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The file of a network for a runtime; each is written once for the runtimes that read the same."""
    made: dict[tuple[str, ...], Path] = {}

    def get(runtime: str, name: str, batch: int = 1) -> Path:
        target = Target(runtime, named(runtime).DEVICES[0], batch=batch if runtime in FIXED_BATCH else 1)
        key = (runtime_of(target).SUFFIX, "translated" * (runtime == "tensorrt"), name, str(target.batch))
        if key not in made:
            path = tmp_path_factory.mktemp(name) / f"model{key[0]}"
            facts = runtime_of(target).deploy(network(name), inputs_of(name, 3), path, target)
            assert json.loads(json.dumps(facts, allow_nan=False)) == facts
            made[key] = path
        return made[key]

    return get


def in_torch(model: nn.Module, inputs: Arrays) -> Wanted:
    with torch.no_grad():
        return {name: y.numpy() for name, y in surgery.call(model, tensors(dict(inputs))).items()}


# -------------------------------------------------------------------------------------------------------------- checks


def check_agrees(session: Session, model: nn.Module, name: str) -> None:
    for n in (1, 2, 5, 8):
        inputs = inputs_of(name, n, seed=n)
        found, wanted = session(inputs), in_torch(model, inputs)
        assert list(found) == list(wanted)
        for key, y in wanted.items():
            assert found[key].dtype == y.dtype
            assert relative_error(found[key], y) < 1e-5, (key, n)


def check_batches(open_with: Callable[[int], Session], name: str) -> None:
    """Any number of samples through any batch, and each sample by itself."""
    inputs = inputs_of(name, 7, seed=4)
    whole = open_with(7)(inputs)
    for batch in (1, 3):
        session = open_with(batch)
        assert session.batch == batch
        for key, y in session(inputs).items():
            assert y.shape == whole[key].shape
            assert relative_error(y, whole[key]) < 1e-5
        for row in (0, 6):
            alone = session({key: x[row : row + 1] for key, x in inputs.items()})
            assert all(relative_error(y, whole[key][row : row + 1]) < 1e-5 for key, y in alone.items())


def check_keeps_results_and_inputs(session: Session, name: str) -> None:
    """A later call changes neither an earlier one's outputs nor its own inputs."""
    first, second = inputs_of(name, session.batch, seed=1), inputs_of(name, session.batch, seed=2)
    kept = {key: x.copy() for key, x in first.items()}
    outputs = session(first)
    copies = {key: y.copy() for key, y in outputs.items()}
    session(second)
    assert all(np.array_equal(outputs[key], y) for key, y in copies.items())
    assert all(np.array_equal(first[key], x) for key, x in kept.items())


# ----------------------------------------------------------------------------------------- every runtime, every network


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_computes_what_the_model_computes(target: Target, name: str, deployed: Callable[..., Path]) -> None:
    session = runtime_of(target).open_file(deployed(target.runtime, name), target)
    check_agrees(session, network(name), name)
    check_keeps_results_and_inputs(session, name)


@pytest.mark.parametrize("name", ["plain", "pair"])
def test_any_batch(target: Target, name: str, deployed: Callable[..., Path]) -> None:
    def open_with(batch: int) -> Session:
        path = deployed(target.runtime, name, batch)
        return runtime_of(target).open_file(path, Target(target.runtime, target.device, batch=batch))

    check_batches(open_with, name)


def test_inputs_and_outputs_go_by_name(target: Target, deployed: Callable[..., Path]) -> None:
    session = runtime_of(target).open_file(deployed(target.runtime, "pair"), target)
    assert session.input_names == ("image", "extra")
    assert session.output_names == ("output_0", "output_1")
    inputs = inputs_of("pair", 3)
    turned = session(dict(reversed(inputs.items())))
    assert all(np.array_equal(turned[key], y) for key, y in session(inputs).items())
    one = runtime_of(target).open_file(deployed(target.runtime, "plain"), target)
    images = inputs_of("plain", 2)["x"]
    assert np.array_equal(one({"any_name": images})["output"], one({"x": images})["output"]), "one goes by position"


def test_arrays_that_are_not_contiguous(target: Target, deployed: Callable[..., Path]) -> None:
    session = runtime_of(target).open_file(deployed(target.runtime, "plain"), target)
    images = inputs_of("plain", 4)["x"]
    strided = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for n in (1, 4):
        found = session({"x": strided[:n]})["output"]
        assert relative_error(found, session({"x": images[:n]})["output"]) < 1e-6


def test_the_model_is_left_as_it_was(target: Target, tmp_path: Path) -> None:
    model, _ = Recipe((Quantize(),)).apply(network("plain"), task_for("plain"), context())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    inputs = inputs_of("plain", 3)
    outputs = in_torch(model, inputs)
    runtime_of(target).deploy(model, inputs, tmp_path / "model", target)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert np.array_equal(in_torch(model, inputs)["output"], outputs["output"])


def test_writing_twice_gives_the_same_bytes(deployed: Callable[..., Path], tmp_path: Path) -> None:
    target = Target("openvino")
    runtime_of(target).deploy(network("mlp"), inputs_of("mlp", 5), tmp_path / "again", target)
    assert (tmp_path / "again").read_bytes() == deployed("onnxruntime", "mlp").read_bytes()


class Same(nn.Module):
    """Gives a value twice, its input, and leaves an input unread."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, a: Tensor, unread: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.layer(a)
        return y, a, y


def test_odd_signatures(target: Target, tmp_path: Path) -> None:
    model, path = Same().eval(), tmp_path / f"model{runtime_of(target).SUFFIX}"
    a = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    inputs = {"a": a, "unread": a * 0}
    runtime_of(target).deploy(model, inputs, path, target)
    found, wanted = runtime_of(target).open_file(path, target)(inputs), in_torch(model, inputs)
    assert list(found) == ["output_0", "output_1", "output_2"]
    assert all(relative_error(found[key], y) < 1e-6 for key, y in wanted.items())


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_model_that_cannot_be_exported(target: Target, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DeployError, match="^torch cannot export the model: ") as caught:  # noqa: RUF043
        runtime_of(target).deploy(Branches(), inputs_of("plain", 2), tmp_path / "model", target)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()
    said = capfd.readouterr()
    assert said.out + said.err == "", "what is raised is not said again"


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "missing"])
def test_a_damaged_file(target: Target, damage: str, deployed: Callable[..., Path], tmp_path: Path) -> None:
    runtime = runtime_of(target)
    whole = deployed(target.runtime, "plain").read_bytes()
    path = tmp_path / f"model{runtime.SUFFIX}"
    if damage != "missing":
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"not a model\n" * 40}[damage])
    with pytest.raises(DeployError, match="cannot open the file") as caught:
        runtime.open_file(path, target)
    assert "\n" not in str(caught.value)


def test_layer_times(target: Target, deployed: Callable[..., Path]) -> None:
    path = deployed(target.runtime, "plain")
    times = runtime_of(target).layer_times(path, target, inputs_of("plain", 1))
    assert all(isinstance(name, str) and time_ms >= 0 for name, time_ms in times.items())
    if times:
        assert {"conv1", "conv2"} <= set(times), "a layer with its batch norm and activation goes by its own name"
        assert sum(times.values()) > 0


@pytest.mark.parametrize("name", RUNTIMES)
def test_every_runtime_offers_the_same_names(name: str) -> None:
    runtime: Runtime = named(name)
    assert runtime.SUFFIX.startswith(".")
    assert {"cpu", "cuda"} & set(runtime.DEVICES)
    assert all(callable(getattr(runtime, function)) for function in ("traits", "deploy", "open_file", "layer_times"))


def test_traits_are_plain_data(target: Target) -> None:
    traits = runtime_of(target).traits(target)
    assert isinstance(traits, Traits)
    assert traits.weight_bits in (7, 8)
    assert "f32" in traits.precisions
    known = {
        call.family for name in NETWORKS for call in surgery.trace(network(name), tensors(inputs_of(name, 2))).calls
    }
    assert traits.integer_operators <= known, "names of families that surgery gives"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            Target("onnx"),
            r"unknown runtime: got 'onnx', wanted one of executorch, litert, onnxruntime, openvino, tensorrt, torch",
        ),
        (Target("onnxruntime", "cuda"), r"a device that onnxruntime does not have: got 'cuda', wanted cpu$"),
        (Target("openvino", "npu"), r"a device that openvino does not have: got 'npu', wanted cpu$"),
        (Target("tensorrt"), r"a device that tensorrt does not have: got 'cpu', wanted cuda$"),
        (Target("torch", "tpu"), r"a device that torch does not have: got 'tpu', wanted cpu or cuda$"),
    ],
)
def test_unknown_targets(target: Target, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        runtime_of(target)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(deployed: Callable[..., Path]) -> None:
    target = Target("torch", "cuda")
    with pytest.raises(DeployError, match="torch sees no CUDA device here"):
        runtime_of(target).open_file(deployed("torch", "plain"), target)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu(deployed: Callable[..., Path]) -> None:
    target = Target("torch", "cuda")
    session = runtime_of(target).open_file(deployed("torch", "plain"), target)
    inputs = inputs_of("plain", 5)
    assert relative_error(session(inputs)["output"], in_torch(network("plain"), inputs)["output"]) < 1e-3


def test_a_runtime_that_is_not_installed(deployed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = deployed("onnxruntime", "plain")
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"openvino is not installed; pip install 'laconic\[openvino\]'"):
        runtime_of(Target("openvino")).open_file(path, Target("openvino"))


# ---------------------------------------------------------------------------------------- every check, a broken runtime


class Torch:
    """Runs the eager model; the runtimes below break one promise each."""

    SUFFIX, DEVICES = ".none", ("cpu",)

    def __init__(self, name: str) -> None:
        self.model = network(name)

    def deploy(self, model: nn.Module, example: Arrays, path: Path, target: Target) -> Facts:
        return {}

    def open_file(self, batch: int) -> Session:
        names = ("output",) if not isinstance(self.model, NETWORKS["pair"]) else ("output_0", "output_1")  # type: ignore[arg-type]
        inputs = tuple(inputs_of("pair" if len(names) > 1 else "plain", 1))
        return Session(self.run, inputs, names, batch)

    def run(self, inputs: Arrays) -> list[Any]:
        return list(in_torch(self.model, inputs).values())


class Inaccurate(Torch):
    def run(self, inputs: Arrays) -> list[Any]:
        return [y * np.float32(1.001) for y in super().run(inputs)]


class Swapped(Torch):
    def run(self, inputs: Arrays) -> list[Any]:
        return super().run(inputs)[::-1]


class Reused(Torch):
    """Gives the same buffer every time."""

    buffer = np.empty((1, 4), np.float32)

    def run(self, inputs: Arrays) -> list[Any]:
        self.buffer[:] = super().run(inputs)[0]
        return [self.buffer]


class Scribbles(Torch):
    def run(self, inputs: Arrays) -> list[Any]:
        outputs = super().run(inputs)
        for x in inputs.values():
            x *= 2  # noqa: PLW2901
        return outputs


class Mixes(Torch):
    """A sample's outputs depend on its neighbours."""

    def run(self, inputs: Arrays) -> list[Any]:
        return [y - y.mean(0, keepdims=True) for y in super().run(inputs)]


class OneBatch(Torch):
    def open_file(self, batch: int) -> Session:
        return super().open_file(1)


BROKEN: dict[str, Callable[[], None]] = {
    "inaccurate": lambda: check_agrees(Inaccurate("plain").open_file(1), network("plain"), "plain"),
    "swapped": lambda: check_agrees(Swapped("pair").open_file(1), network("pair"), "pair"),
    "reused": lambda: check_keeps_results_and_inputs(Reused("plain").open_file(1), "plain"),
    "scribbles": lambda: check_keeps_results_and_inputs(Scribbles("plain").open_file(1), "plain"),
    "mixes": lambda: check_batches(Mixes("plain").open_file, "plain"),
    "one batch": lambda: check_batches(OneBatch("plain").open_file, "plain"),
}


def test_a_good_runtime_passes() -> None:
    for name in ("plain", "pair"):
        check_agrees(Torch(name).open_file(2), network(name), name)
        check_keeps_results_and_inputs(Torch(name).open_file(2), name)
        check_batches(Torch(name).open_file, name)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_runtime_is_caught(name: str) -> None:
    with pytest.raises(AssertionError):
        BROKEN[name]()
