"""Dead channels take copies: the function stays, the size stays, and the rounding of what was copied gets finer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Recipe
from laconic.fake_quantize import attached, weight_quantizer
from laconic.steps.quantize import spare
from laconic.steps.quantize.post_training import Quantize
from laconic.steps.quantize.rounding import float_network, float_weight
from tests.networks import context, inputs_of, task_for, tensors

DEAD = [1, 4, 6]


class Picture(nn.Module):
    """Eight channels: three are dead, channel 0 widens the range, channel 2 is the picture that outputs are made of.

    With ``apart`` a depthwise layer lies between, behind which a dead channel is a constant.
    """

    def __init__(self, apart: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.apart = nn.Conv2d(8, 8, 3, padding=1, groups=8) if apart else None
        self.last = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6 * 64, 4)
        with torch.no_grad():
            self.first.weight[DEAD] *= 0.01
            self.first.bias[DEAD] = -1.0
            self.first.bias[2] = 3.0
            self.first.bias[0] = 40.0
            self.last.weight[:, 0] *= 0.01
            self.last.weight[:, 2] *= 5
            if self.apart is not None:
                self.apart.weight *= 0.3
                self.apart.weight[:, 0, 1, 1] += 1.0
                self.apart.bias[DEAD] = torch.tensor([-0.2, 0.3, 0.5])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = x if self.apart is None else F.relu(self.apart(x))
        return self.head(torch.flatten(F.relu(self.last(x)), 1))


def quantized(model: nn.Module, **settings: Any) -> tuple[nn.Module, dict[str, Any]]:
    changed, (facts,) = Recipe((Quantize(**settings),)).apply(model, task_for("plain"), context())
    return changed, facts


def copies_in(facts: dict[str, Any]) -> list[list[int]]:
    """Each channel of the first layer that was copied, and its copies."""
    return [channels for name, _, channels, _ in facts["copied"] if name == "first"]


def outputs(model: nn.Module, seed: int = 5) -> np.ndarray:
    with torch.no_grad():
        (y,) = surgery.call(model, tensors(inputs_of("plain", 64, seed))).values()
    return y.numpy()


def noise(model: nn.Module, original: nn.Module) -> float:
    """The error's power as a share of the outputs'."""
    wanted = outputs(original)
    return float(np.square(outputs(model) - wanted).sum() / np.square(wanted).sum())


@pytest.mark.parametrize("apart", [False, True])
def test_the_picture_is_copied_into_dead_channels(apart: bool) -> None:
    model = Picture(apart).eval()
    _, facts = quantized(model)
    layers = ["first", *(["apart"] if apart else []), "last"]
    assert (sorted({row[0] for row in facts["copied"]}), facts["biased"]) == (sorted(layers[:-1]), layers)
    channels = copies_in(facts)
    assert sorted(c for taken in channels for c in taken[1:]) == DEAD, "every dead channel is used, and only once"
    assert max(channels, key=len)[0] == 2


@pytest.mark.parametrize("apart", [False, True])
def test_the_function_stays_and_the_noise_falls(apart: bool) -> None:
    model = Picture(apart).eval()
    plain, _ = quantized(model, spare_channels=False)
    copied, _ = quantized(model)
    assert noise(float_network(copied), model) < 0.05 * noise(plain, model)
    assert noise(copied, model) < 0.6 * noise(plain, model)
    assert [p.shape for p in copied.parameters()] == [p.shape for p in plain.parameters()]


def test_copies_without_shifts_gain_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded alike, they would be one channel with more work: the shifts are what helps."""
    model = Picture(apart=False).eval()
    with_shifts = noise(quantized(model)[0], model)
    copy: Callable[..., None] = spare._copy

    def unshifted(copied: spare.Copied) -> spare.Copied:
        return dataclasses.replace(copied, shifts=((0.0,) * len(copied.channels),))

    monkeypatch.setattr(spare, "_copy", lambda chain, copied, means: copy(chain, unshifted(copied), means))
    assert with_shifts < 0.6 * noise(quantized(model)[0], model)


def test_copies_behind_a_depthwise_layer_lie_a_share_of_its_own_step_apart() -> None:
    model = Picture(apart=True).eval()
    changed, facts = quantized(model, bias_correction=False)
    activations = attached(changed)
    assert activations is not None
    step = float(activations.by_value()["/relu#1"].scale)
    twin, x = float_network(changed), tensors(inputs_of("plain", 8))["x"]
    with torch.no_grad():
        y = twin.apart(F.relu(twin.first(x)))[:, :, 1:-1, 1:-1]  # type: ignore[operator]
    for channels in copies_in(facts):
        for i, channel in enumerate(channels):
            apart = (y[:, channel] - y[:, channels[0]])[y[:, channels[0]] > 0.5]
            assert torch.allclose(apart, torch.full_like(apart, step * i / len(channels)), atol=0.02 * step)


def test_codes_of_copies_add_up_to_the_weight_rounded_once() -> None:
    model = Picture(apart=False).eval()
    changed, facts = quantized(model)
    last = changed.get_submodule("last")
    scale = weight_quantizer(last).scale  # type: ignore[union-attr]
    for channels in copies_in(facts):
        exact = model.last.weight[:, channels[0], 0, 0]
        kept = float_weight(last)[:, channels, 0, 0].sum(1)  # type: ignore[arg-type]
        rounded = last.weight[:, channels, 0, 0].sum(1)  # type: ignore[index, union-attr]
        assert torch.allclose(kept, exact, atol=1e-5)
        assert bool(((rounded - exact).abs() <= 0.501 * scale).all())


def test_channels_that_may_wake_are_left_alone() -> None:
    """Dead on all samples is not enough: nothing that the input's range allows may come through."""
    model = Picture(apart=False).eval()
    with torch.no_grad():
        x = tensors(inputs_of("plain", 64))["x"]
        model.first.weight[1] *= 100
        reach = float(model.first.weight[1].abs().sum() * x.abs().max())
        model.first.bias[DEAD] = torch.tensor([-0.5 * reach, -1.0, -1.0])
    _, facts = quantized(model)
    used = {channel for channels in copies_in(facts) for channel in channels[1:]}
    with torch.no_grad():
        assert float(model.first(x)[:, 1].max()) < 0, "no sample wakes it"
    assert used == {4, 6}


def test_a_constant_that_zeros_are_padded_around_is_left_alone() -> None:
    model = Picture(apart=True).eval()
    model.last = nn.Conv2d(8, 6, 3, padding=1)
    assert model.apart is not None
    _, facts = quantized(model)
    used = {channel for channels in copies_in(facts) for channel in channels[1:]}
    assert used == {1}


def test_layers_that_are_kept_stay_as_they_were() -> None:
    model = Picture(apart=False).eval()
    changed, facts = quantized(model, exclude=("last",))
    assert facts["copied"] == []
    assert torch.equal(changed.get_submodule("last").weight, model.last.weight)  # type: ignore[arg-type]


def test_it_is_restored() -> None:
    model = Picture(apart=True).eval()
    model.last.bias = None
    changed, facts = quantized(model, bias_correction=False)
    again = Quantize(bias_correction=False).restore(Picture(apart=True).eval(), facts)
    again.load_state_dict(changed.state_dict())
    assert attached(again) is not None
    assert np.array_equal(outputs(again), outputs(changed))
