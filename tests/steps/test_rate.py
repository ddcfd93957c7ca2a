"""Rate and distortion: against a brute force, GPTQ, and the divergence that the step promises."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Recipe, Step, Target
from laconic.pack import container
from laconic.runtime import onnxruntime
from laconic.steps.quantize import rounding
from laconic.steps.quantize.gptq import gptq
from laconic.steps.quantize.post_training import Quantize
from laconic.steps.quantize.rate import RateDistortion, cheapest, chosen, sensitivities
from laconic.steps.quantize.weights import QuantizeWeights
from tests.networks import context, inputs_of, network, task_for

LIMITS = (-7, 7)


def problem(channels: int, inputs: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A weight (1, channels, inputs), its scale and zero point, and the mean of x x^T of correlated inputs."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(1, channels, inputs, generator=g, dtype=torch.float64)
    x = torch.randn(1, 500, inputs, generator=g, dtype=torch.float64) + 0.5
    scale = (weight.abs().amax() / LIMITS[1]).expand_as(weight)
    return weight, scale, torch.zeros_like(weight), x.transpose(1, 2) @ x / 500


def test_without_a_price_for_bits_it_is_gptq() -> None:
    weight, scale, zero, hessian = problem(6, 40)
    wanted, _ = gptq(weight, scale, zero, LIMITS, hessian, order=False)
    found, _ = cheapest(weight, scale, zero, LIMITS, hessian, torch.full((1, 6), 1e12, dtype=torch.float64))
    torch.testing.assert_close(found, wanted)


def test_each_code_is_the_cheapest_where_inputs_do_not_depend_on_each_other() -> None:
    """With one channel and independent inputs nothing is passed on: every weight is on its own."""
    weight, scale, zero, _ = problem(1, 200)
    eye = torch.eye(200, dtype=torch.float64)[None]
    cost = torch.tensor([[10.0]], dtype=torch.float64)
    bits = torch.linspace(-7, 7, 15).abs() * 0.6 + 1
    found = chosen(weight, scale, zero, LIMITS, eye, torch.full_like(weight, 10.0), bits.double())
    levels = torch.arange(-7, 8)
    total = 10 * (weight[0, 0, :, None] - levels * scale[0, 0, :, None]).square() + bits
    torch.testing.assert_close(found[0, 0], levels[total.argmin(1)].double())
    _, entropy = cheapest(weight, scale, zero, LIMITS, eye, cost)
    nearest = torch.round(weight / scale)
    shares = np.unique(nearest, return_counts=True)[1] / 200
    assert entropy < -(shares * np.log2(shares)).sum() - 0.3


def test_more_is_paid_for_what_matters() -> None:
    """Of two equal channels the one whose output matters more keeps more of its weight."""
    weight, scale, zero, hessian = problem(1, 300)
    twice = [t.repeat(1, 2, 1) for t in (weight, scale, zero)]
    cost = torch.tensor([[200.0, 5.0]], dtype=torch.float64)
    codes, _ = cheapest(twice[0], twice[1], twice[2], LIMITS, hessian, cost)
    error = ((codes * twice[1] - twice[0]) @ hessian * (codes * twice[1] - twice[0])).sum(2)[0]
    zeros = (codes == 0).sum(2)[0]
    assert error[0] < error[1]
    assert zeros[0] < zeros[1]


def test_pruned_weights_stay_zero_and_codes_in_their_limits() -> None:
    weight, scale, zero, hessian = problem(5, 60)
    weight[..., ::3] = 0
    for cost in (1e-3, 1.0, 1e6):
        codes, _ = cheapest(weight, scale / 4, zero, LIMITS, hessian, torch.full((1, 5), cost, dtype=torch.float64))
        assert not codes[..., ::3].any()
        assert LIMITS[0] <= codes.min()
        assert codes.max() <= LIMITS[1]


def test_sensitivities_are_the_fisher_information_of_the_outputs() -> None:
    """For the last layer of a classifier F = diag(p) - p p^T is known."""
    torch.manual_seed(0)
    model = Recipe((QuantizeWeights(8),)).apply(network("plain"), task_for("plain"), context())[0]
    last = list(rounding.rounded_layers(model, "test"))[-1]
    drawn = [sensitivities(model, [last], task_for("plain"), context(seed=seed))[last] for seed in range(60)]
    inputs = {name: torch.as_tensor(x) for name, x in task_for("plain").calibration_batch().inputs.items()}
    with torch.no_grad():
        p = next(iter(surgery.call(rounding.float_network(model).eval(), inputs).values())).softmax(1)
    fisher = (p - p.square()).mean(0)
    torch.testing.assert_close(torch.stack(drawn).mean(0), (fisher + fisher.mean()) / 2, rtol=0.15, atol=0.01)


@pytest.mark.parametrize("before", [QuantizeWeights(6), Quantize(bits=6)], ids=["weights", "all"])
def test_the_dearer_bits_are_the_fewer_there_are_and_the_more_the_predictions_move(before: Step) -> None:
    task, entropy, moved = task_for("plain"), [], []
    inputs = {name: torch.as_tensor(x) for name, x in task.calibration_batch().inputs.items()}
    with torch.no_grad():
        wanted = next(iter(surgery.call(network("plain").eval(), inputs).values())).log_softmax(1)
    for price in (0.0, 1.0, 30.0):
        model, facts = Recipe((before, RateDistortion(price))).apply(network("plain"), task, context())
        with torch.no_grad():
            found = next(iter(surgery.call(model, inputs).values())).log_softmax(1)
        moved.append(float((wanted.exp() * (wanted - found)).sum(1).mean()))
        entropy.append(facts[-1]["entropy_bits"])
    assert 0 < entropy[2] < entropy[1] - 0.3 < entropy[0] - 0.3
    assert moved[2] > 2 * moved[0]
    assert moved[2] < 30 * 1e-6 * (entropy[0] - entropy[2]) * 4000 + 2 * moved[0]  # 4,000 weights: no more than is paid


def test_the_packed_file_gets_smaller(tmp_path: Path) -> None:
    sizes = []
    for steps in ((QuantizeWeights(6),), (QuantizeWeights(6), RateDistortion(10.0))):
        model, _ = Recipe(steps).apply(network("plain"), task_for("plain"), context())
        path = tmp_path / "model.onnx"
        onnxruntime.deploy(model, inputs_of("plain", 2), path, Target("onnxruntime"))
        sizes.append(container.pack_file(path).payload)
    assert sizes[1] < 0.9 * sizes[0]


def test_codes_do_not_depend_on_how_channels_are_grouped() -> None:
    """Two groups are two problems."""
    first, second = problem(4, 30, seed=1), problem(4, 30, seed=2)
    both = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    cost = torch.full((2, 4), 1e12, dtype=torch.float64)
    codes, _ = cheapest(both[0], both[1], both[2], LIMITS, both[3], cost)
    for i, one in enumerate((first, second)):
        alone, _ = cheapest(one[0], one[1], one[2], LIMITS, one[3], cost[:1])
        torch.testing.assert_close(codes[i : i + 1], alone)


def test_all_levels_are_tried_that_could_be_cheapest() -> None:
    """Against every choice of three weights, errors passed on to those behind."""
    weight, scale, zero, hessian = problem(1, 3, seed=5)
    cost = torch.full((1, 1), 1e9, dtype=torch.float64)
    codes, _ = cheapest(weight, scale, zero, LIMITS, hessian, cost)

    def loss(found: Tensor) -> float:
        error = (found * scale - weight)[0]
        return float((error @ hessian[0] @ error.T).sum())

    every = [loss(torch.tensor([[c]], dtype=torch.float64)) for c in itertools.product(range(-7, 8), repeat=3)]
    assert loss(codes) <= min(every) * 1.6


def test_a_layer_whose_outputs_nothing_depends_on() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(192, 10), nn.Linear(192, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.unused(x.flatten(1))
            return self.used(x.flatten(1))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    found = sensitivities(Unused(), ["used", "unused"], task_for("plain"), context())
    assert found["used"].shape == (10,)
    assert found["unused"].shape == (4,)
