"""AdaRound: the soft rounding's formulas, and codes that are near the best of all and never worse than the nearest."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from laconic.core import Recipe
from laconic.steps.quantize import adaround, rounding
from laconic.steps.quantize.adaround import AdaRound
from laconic.steps.quantize.layerwise import Rows
from laconic.steps.quantize.post_training import Quantize
from laconic.steps.quantize.rounding import SoftRounding
from tests.networks import context, network, task_for


def soft_rounding(weight: Tensor, scale: float) -> SoftRounding:
    return SoftRounding(weight, torch.tensor([[scale]]), torch.tensor([[0]]), -3, 3)


def test_the_soft_rounding_begins_as_the_float_weight_and_ends_beside_it() -> None:
    weight = torch.linspace(-3.4, 3.4, 35)[None] * 0.1
    soft = soft_rounding(weight, 0.1)
    torch.testing.assert_close(soft(), weight.clamp(-0.3, 0.3), rtol=0, atol=1e-4)
    assert torch.equal(soft.codes(), torch.floor(weight / 0.1 + 0.5).clamp(-3, 3))
    with torch.no_grad():
        soft.v.copy_(torch.tensor([-9.0, 9.0]).repeat(18)[:35])
    assert set(((soft.codes() - torch.floor(weight / 0.1)) * (soft.codes().abs() < 3)).unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(soft(), soft.codes() * 0.1)
    assert float(soft.undecided(2.0).detach()) == 0.0


def test_the_formulas_are_the_papers() -> None:
    soft = soft_rounding(torch.full((1, 3), 0.05), 0.1)
    v = torch.tensor([[-1.0, 0.3, 2.0]])
    with torch.no_grad():
        soft.v.copy_(v)
    h = [min(max(1.2 / (1 + math.exp(-x)) - 0.1, 0.0), 1.0) for x in v[0].tolist()]  # eq. 23
    torch.testing.assert_close(soft.h().detach(), torch.tensor([h]))
    reg = sum(1 - abs(2 * x - 1) ** 5.0 for x in h) / 3  # eq. 24, as a mean
    assert float(soft.undecided(5.0).detach()) == pytest.approx(reg, rel=1e-5)
    assert rounding.beta_at(0.1) is None
    assert rounding.beta_at(0.2) == 20.0
    assert rounding.beta_at(1.0) == 2.0


def test_what_pruning_left_at_zero_stays_there() -> None:
    soft = soft_rounding(torch.tensor([[0.0, 0.05]]), 0.1)
    with torch.no_grad():
        soft.v.fill_(5.0)
    assert soft.codes().tolist() == [[0.0, 1.0]]


def test_it_is_near_the_best_codes_of_all() -> None:
    totals = dict.fromkeys(("best", "learned", "nearest"), 0.0)
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        weight = torch.randn(1, 8, generator=g)
        x = torch.randn(1, 200, 8, generator=g) @ torch.randn(8, 8, generator=g)
        rows = Rows(x, (x[0] @ weight.T), (0.0, 6.0), torch.zeros(1))
        soft = soft_rounding(weight, float(weight.abs().max()) / 3)
        nearest = torch.round(weight / soft.scale).clamp(-3, 3)
        learned = adaround.learn(soft, rows, nearest, 200, g)
        floor = torch.floor(weight / soft.scale)
        every = [(floor + torch.tensor([up])).clamp(-3, 3) for up in itertools.product((0.0, 1.0), repeat=8)]
        errors = [float(rows.errors(codes * soft.scale)) for codes in every]
        totals["best"] += min(errors)
        totals["learned"] += float(rows.errors(learned * soft.scale))
        totals["nearest"] += float(rows.errors(nearest * soft.scale))
    assert totals["best"] <= totals["learned"] < 1.5 * totals["best"]
    assert totals["learned"] < 0.8 * totals["nearest"]


def test_where_learning_fails_the_nearest_codes_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaround, "learn", lambda soft, rows, nearest, iterations, generator: -nearest)
    model, (_, facts) = Recipe((Quantize(bits=4), AdaRound())).apply(network("plain"), task_for(), context())
    assert facts["error_left"] == 1.0
    before, _ = Recipe((Quantize(bits=4),)).apply(network("plain"), task_for(), context())
    were = rounding.rounded_layers(before, "It")
    for name, layer in rounding.rounded_layers(model, "It").items():
        assert torch.equal(layer.weight, were[name].weight)


def test_the_layers_come_closer_to_the_float_ones() -> None:
    _, (_, facts) = Recipe((Quantize(bits=4), AdaRound(60))).apply(network("plain"), task_for(), context())
    assert facts["error_left"] < 0.95
