"""Means and spreads of what layers give, after their weights share values: as they were before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic import models, surgery
from laconic.core import Recipe, Target
from laconic.errors import TrialError
from laconic.runtime import onnxruntime
from laconic.steps.cluster import matching
from laconic.steps.cluster.kmeans import Cluster
from laconic.steps.cluster.product import ProductQuantize
from tests.networks import context, lively, network, task_for, tensors

STEPS = [Cluster(bits=2), ProductQuantize(entries=16)]


def moments(model: nn.Module, name: str, families: tuple[str, ...]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard deviation per channel of what calls of these families give on the calibration samples."""
    inputs = tensors(task_for(name).calibration_batch().inputs)
    keys = {call.key: call for call in surgery.trace(model, inputs).calls if call.family in families}
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def handler(key: str, module: str, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        if key in keys:
            rows = result.movedim(-1 if keys[key].family == "linear" else 1, -1).flatten(0, -2)
            found[module] = rows.mean(0), rows.std(0, correction=0)
        return result

    with torch.no_grad(), surgery.watched(model, handler):
        surgery.call(model, inputs)
    return found


def made(model: nn.Module, step: Any, name: str = "plain") -> tuple[Any, Any]:
    changed, (facts,) = Recipe((step,)).apply(model, task_for(name), context())
    return changed, facts


@pytest.mark.parametrize("step", STEPS, ids=["Cluster", "ProductQuantize"])
@pytest.mark.parametrize("name", ["residual", "depthwise", "plain"])
def test_behind_a_batch_norm_every_channel_has_its_mean_and_its_spread_again(name: str, step: Any) -> None:
    before = network(name, seed=1)
    model, _ = made(before, step, name)
    wanted, found = (moments(one, name, ("batch_norm",)) for one in (before, model))
    for module, (mean, spread) in wanted.items():
        torch.testing.assert_close(found[module][0], mean, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(found[module][1], spread, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("step", STEPS, ids=["Cluster", "ProductQuantize"])
@pytest.mark.parametrize("name", ["mlp", "tokens", "plain"])
def test_elsewhere_the_bias_takes_the_mean_and_the_codebook_the_spread_of_the_layer(name: str, step: Any) -> None:
    model, facts = made(network(name), step, name)
    wanted, found = (moments(one, name, ("linear",)) for one in (network(name), model))
    changed = [layer for layer, *_ in facts["layers"] if layer in wanted]
    assert changed
    for layer in changed:
        torch.testing.assert_close(found[layer][0], wanted[layer][0], atol=1e-5, rtol=1e-4)
        (_, before), (_, now) = wanted[layer], found[layer]
        assert float(before @ now / now.square().sum()) == pytest.approx(1, abs=1e-4)  # no other gain is better


@pytest.mark.parametrize("step", STEPS, ids=["Cluster", "ProductQuantize"])
def test_a_layer_with_neither_batch_norm_nor_bias_gets_a_bias(step: Any) -> None:
    model, facts = made(network("mlp"), step, "mlp")
    assert facts["biased"] == ["3"]
    assert bool(model[3].bias.abs().sum() > 0)
    assert made(network("residual"), step, "residual")[1]["biased"] == []  # there the batch norms take it


@pytest.mark.parametrize("step", STEPS, ids=["Cluster", "ProductQuantize"])
def test_a_layer_that_is_called_twice_keeps_its_bias(step: Any) -> None:
    model, facts = made(network("twice"), step, "twice")
    assert "again" in [name for name, *_ in facts["layers"]]
    before = network("twice")
    assert torch.equal(model.again.bias, before.again.bias)  # type: ignore[union-attr]
    assert not torch.equal(model.first.bias, before.first.bias)  # type: ignore[union-attr]


class Odd(nn.Module):
    """A batch norm over the tokens of a linear layer, as many as it has channels; a bias of two layers; a bias that is
    computed; a batch norm of two layers; one that keeps no statistics; a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Linear(24, 8)
        self.over_tokens = nn.BatchNorm1d(8)
        self.left, self.right = nn.Linear(24, 8), nn.Linear(8, 8)
        self.right.bias = self.left.bias
        self.computed = parametrize.register_parametrization(nn.Linear(8, 8), "bias", nn.Tanh())
        self.one, self.two, self.shared = nn.Linear(8, 8), nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.batchwise = nn.BatchNorm1d(8, track_running_stats=False)
        self.recurrent = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 8, 24)
        x = self.over_tokens(self.tokens(x)) + self.right(self.left(x))
        x = self.recurrent(self.computed(x))[0].mean(1)
        return self.head(self.batchwise(self.shared(self.two(self.shared(self.one(x))))))


@pytest.mark.parametrize("step", STEPS, ids=["Cluster", "ProductQuantize"])
def test_what_a_correction_could_not_be_right_for_is_left_as_it_is(step: Any) -> None:
    torch.manual_seed(0)
    before = lively_but(Odd())
    model, facts = made(before, step)
    assert {"tokens", "left", "right", "computed", "one", "two", "head"} <= {name for name, *_ in facts["layers"]}
    same = ("over_tokens.running", "shared.running", "left.bias", "right.bias", "computed.param", "recurrent.")
    state = model.state_dict()
    for key, value in before.state_dict().items():
        if key.startswith(same) and "computed.parametrizations.weight" not in key:
            assert torch.equal(state[key], value), key
    wanted, found = (moments(one, "plain", ("linear",))["head"][0] for one in (before, model))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)  # of what the layers before it really give
    for key in ("tokens.bias", "one.bias", "head.bias"):
        assert not torch.equal(state[key], before.state_dict()[key]), key


def lively_but(model: Odd) -> nn.Module:
    lively(nn.ModuleList([model.over_tokens, model.shared]))
    return model.eval()


def test_no_channel_is_stretched_more_than_four_times() -> None:
    model = network("residual")
    task = task_for("residual")
    before = matching.remember(model, tensors(task.calibration_batch().inputs), {"stem.0": model.stem[0]})  # type: ignore[index]
    (noted,) = before.values()
    variance = noted.norm.running_var.clone()  # type: ignore[union-attr, operator]
    spread = torch.ones(8)
    spread[2], spread[3] = 0.1, 8.0
    result = noted.mean.reshape(-1, 1, 1) + (spread * noted.spread).reshape(-1, 1, 1) * torch.tensor([[[[-1.0, 1.0]]]])
    matching.match("stem.0/conv2d#0", model.stem[0], noted, result)  # type: ignore[index]
    ratio = ((noted.norm.running_var + 1e-5) / (variance + 1e-5)).sqrt()  # type: ignore[union-attr, operator]
    torch.testing.assert_close(ratio, torch.tensor([1, 1, 0.25, 4, 1, 1, 1, 1]))


def test_dead_channels_stay_finite() -> None:
    model = network("residual")
    with torch.no_grad():
        model.stem[0].weight[2] = 0  # type: ignore[index]
        model.blocks[0].conv1.weight[:] = 0  # type: ignore[index]
        model.head.weight[:] = 0  # type: ignore[operator]
    for step in STEPS:
        changed, _ = made(model, step, "residual")
        assert all(bool(torch.isfinite(value).all()) for value in changed.state_dict().values())


@pytest.mark.parametrize("step", STEPS, ids=["Cluster", "ProductQuantize"])
def test_values_that_are_not_finite_fail_the_trial(step: Any) -> None:
    model = network("plain")
    with torch.no_grad():
        model.fc1.bias[:] = 3e38  # type: ignore[operator, index]
        model.fc2.weight[:] = 3e38  # type: ignore[operator]
    with pytest.raises(TrialError, match="not finite behind fc2"):
        made(model, step)


def test_batch_norms_and_biases_are_written_into_imported_files(tmp_path: Path) -> None:
    """A Conv without a bias, BatchNormalization, a MatMul without a bias."""
    draw = np.random.default_rng(0)
    arrays = {
        "weight": draw.standard_normal((16, 3, 3, 3)),
        **{name: draw.uniform(0.5, 1.5, 16) for name in ("gain", "shift", "mean", "variance")},
        "matrix": draw.standard_normal((16, 40)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "weight"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "gain", "shift", "mean", "variance"], ["b"]),
        helper.make_node("Relu", ["b"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "matrix"], ["y"]),
    ]
    shapes = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["n", 3, 8, 8]), ("y", ["n", 40]))
    ]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in arrays.items()]
    graph = helper.make_graph(nodes, "g", shapes[:1], shapes[1:], constants)
    source, path = tmp_path / "source.onnx", tmp_path / "f.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), source)
    module = models.load(str(source)).module
    for step in (Cluster(bits=1), ProductQuantize(entries=8)):
        model, facts = made(module, step)
        assert len(facts["biased"]) == 1
        inputs = {"x": draw.standard_normal((5, 3, 8, 8)).astype(np.float32)}
        target = Target("onnxruntime", batch=5)
        onnxruntime.deploy(model, inputs, path, target)
        with torch.no_grad():
            wanted = next(iter(surgery.call(model, tensors(inputs)).values())).numpy()
            original = next(iter(surgery.call(module, tensors(inputs)).values())).numpy()
        found = next(iter(onnxruntime.open_file(path, target)(inputs).values()))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
        assert np.abs(wanted - original).max() > 1e-2
        norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        assert not np.allclose(norm.running_var.numpy(), arrays["variance"], rtol=1e-3)  # type: ignore[union-attr]
