"""Integers by what they cost to store and in accuracy: against GPTQ, plain formulas, and gradients by hand."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from laconic import surgery
from laconic.core import Recipe, Target
from laconic.errors import RecipeError, TrialError
from laconic.models.loaded import LoadedModel
from laconic.pack import container
from laconic.runtime import onnxruntime
from laconic.steps.prune.evidence import sample_loss
from laconic.steps.quantize.code_length import lengths
from laconic.steps.quantize.gptq import Columns, gptq
from laconic.steps.quantize.post_training import Quantize
from laconic.steps.quantize.rate_distortion import RateDistortion, best_steps, codes_of, output_fisher
from laconic.story.evaluate import Evaluator, Job
from tests.networks import context, inputs_of, network, task_for, tensors

STEPS = torch.tensor([[0.25, 0.5]], dtype=torch.float64)


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(1, 2, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def moments() -> Tensor:
    g = torch.Generator().manual_seed(2)
    mix = torch.randn(24, 24, generator=g, dtype=torch.float64) * torch.logspace(0, -1, 24)
    x = torch.randn(500, 24, generator=g, dtype=torch.float64) @ mix + 0.5
    return (x.T @ x / 500)[None]


def bits_of(codes: Tensor) -> float:
    zero, other, magnitude = lengths(codes[0].abs(), 127)
    return float(torch.where(codes[0] == 0, zero, other + magnitude[codes[0].abs().long()]).sum())


def loss_of(codes: Tensor, weight: Tensor, moments: Tensor) -> float:
    error = (codes * STEPS[:, :, None] - weight)[0]
    return float((error @ moments[0] * error).sum()) / 2


def test_without_a_price_they_are_those_of_gptq(weight: Tensor, moments: Tensor) -> None:
    scale = STEPS[:, :, None].expand_as(weight)
    expected, _ = gptq(weight, scale, torch.zeros_like(weight), (-127, 127), moments)
    assert torch.equal(codes_of(weight, STEPS, Columns(moments), 0.0), expected)


def test_a_price_buys_bits_for_less_than_they_are_worth(weight: Tensor, moments: Tensor) -> None:
    columns = Columns(moments)
    found = [codes_of(weight, STEPS, columns, price) for price in (0.0, 0.01, 0.05, 100.0)]
    bits = [bits_of(codes) for codes in found]
    losses = [loss_of(codes, weight, moments) for codes in found]
    assert bits == sorted(bits, reverse=True)
    assert bits[2] < 0.9 * bits[0]
    assert losses[0] < losses[1] < losses[2] < losses[3]
    assert losses[2] + 0.05 * bits[2] < losses[0] + 0.05 * bits[0]
    assert not found[3].any()


def test_weights_that_pruning_left_zero_stay_zero(weight: Tensor, moments: Tensor) -> None:
    weight[:, :, ::3] = 0.0
    codes = codes_of(weight, STEPS, Columns(moments), 0.01)
    assert not codes[:, :, ::3].any()
    assert codes.any()


def test_the_step_is_where_a_finer_one_costs_as_much_as_it_gains(weight: Tensor, moments: Tensor) -> None:
    """For a price, the derivative of s^2 / 24 times the sum of U_jj^-2 is that of the bits, n log2(1 / s)."""
    columns, price = Columns(moments), 0.002
    spread = float(columns.upper[0].diagonal().pow(-2).sum())
    for step in best_steps(weight, columns, price)[0].tolist():
        assert step * spread / 12 == pytest.approx(price * 24 / (step * math.log(2)), rel=0.3)  # three bits of mantissa
        assert math.frexp(step)[0] * 16 == int(math.frexp(step)[0] * 16)
    largest = weight.abs().amax(-1)
    assert (best_steps(weight, columns, 1e-12) * 127 >= largest).all()
    assert (best_steps(weight, columns, 1e12) >= 2 * largest).all()
    assert (best_steps(torch.zeros_like(weight), columns, price) == 1).all()


def test_fisher_is_the_mean_square_of_the_outputs_gradients() -> None:
    model, task, told = network("plain").eval(), task_for("plain"), context()
    layers = surgery.weighted_layers(model)
    found = output_fisher(model, layers, task, told)
    name, layer = list(layers.items())[-1]
    assert isinstance(layer, torch.nn.Linear)
    layer.bias.requires_grad_(True)
    squares, loss = [], sample_loss(task, told)
    for i in range(min(64, task.calibration, len(task.train))):
        (gradient,) = torch.autograd.grad(loss(model, task.train.read([i])), [layer.bias])  # dL/dy of one place
        squares.append(float(gradient.square().mean()))
    assert found[name] == pytest.approx(np.mean(squares), rel=1e-5)
    assert all(value > 0 for value in found.values())


def test_the_higher_the_price_the_smaller_the_file(tmp_path: Path) -> None:
    task, inputs, target = task_for("residual"), inputs_of("residual", 32), Target("onnxruntime")
    wanted = network("residual").eval()(*tensors(inputs).values()).detach().numpy()
    sizes, errors = [], []
    for price in (1e-7, 1e-2, 1.0):
        model, _ = Recipe((RateDistortion(price=price),)).apply(network("residual"), task, context())
        path = tmp_path / f"{price}.onnx"
        onnxruntime.deploy(model, inputs, path, target)
        outputs = next(iter(onnxruntime.open_file(path, target)(inputs).values()))
        sizes.append(len(container.pack(path.read_bytes(), ".onnx").content))
        errors.append(float(np.square(outputs - wanted).sum() / np.square(wanted - wanted.mean(0)).sum()))
    assert sizes[0] > sizes[1] > sizes[2]
    assert errors[0] < 0.01
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("name", ["tokens", "attention", "depthwise"])
def test_what_is_deployed_is_what_was_rounded(name: str, tmp_path: Path) -> None:
    """ONNX Runtime multiplies such weights of linear layers by activations that it rounds while it runs."""
    loaded = LoadedModel(module=network(name), source=name, input_names=("input",))
    job = Job(lambda progress: (loaded, task_for(name)), Target("onnxruntime"), 0, (), tmp_path)
    recipe = Recipe((RateDistortion(price=1e-3),))
    row = Evaluator(job, lambda text, fraction: None).trial(recipe.to_json(), recipe.key, [], 1.0)
    assert row["error"] is None
    assert row["records"]


def test_biases_are_short_numbers() -> None:
    model, _ = Recipe((RateDistortion(price=1e-3),)).apply(network("plain"), task_for("plain"), context())
    for layer in surgery.weighted_layers(model).values():
        values = layer.bias.detach().double()
        _, exponents = torch.frexp(values[values != 0])
        mantissas = values[values != 0] * torch.exp2(12.0 - exponents)
        assert torch.equal(mantissas, mantissas.round())


def test_what_cannot_be() -> None:
    with pytest.raises(RecipeError, match="price of RateDistortion"):
        RateDistortion(price=0.0)
    with pytest.raises(RecipeError, match="put RateDistortion before it"):
        Recipe((Quantize(), RateDistortion())).apply(network("plain"), task_for("plain"), context())
    broken = copy.deepcopy(network("plain"))
    with torch.no_grad():
        next(iter(surgery.weighted_layers(broken).values())).weight[0] = math.nan
    with pytest.raises(TrialError, match="not finite"):
        Recipe((RateDistortion(),)).apply(broken, task_for("plain"), context())
