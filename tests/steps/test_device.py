"""Training on a graphics card: recorded steps give what plain steps give; what cannot be recorded is trained as well.

The tests of the card are skipped where there is none.
"""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from laconic import surgery
from laconic.errors import TrialError
from laconic.steps.train import fit as room
from laconic.steps.train.device import Recorded, Teacher, placed, precision
from laconic.steps.train.fit import Schedule, fit
from tests.networks import cross_entropy, network, task_for, tensors

card = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
SCHEDULE = Schedule(epochs=4, lr=3e-3, batch=32, weight_decay=1e-4, distill=0.5, temperature=4.0)


def quiet(text: str, fraction: float) -> None:
    pass


def trained(monkeypatch: pytest.MonkeyPatch, device: str, recorded: bool = True, model: Any = None) -> Any:
    monkeypatch.setattr(room, "training_device", lambda: torch.device(device))
    if not recorded:
        monkeypatch.setattr(room, "Recorded", lambda step: step)
    model, task = model or network("residual"), task_for("residual", 256)
    facts = fit(model, task.train, task.loss, Teacher(network("residual", seed=5)), SCHEDULE, 0, quiet)
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    return model.state_dict(), facts


@card
def test_recorded_steps_are_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.backends.cudnn.allow_tf32 = False
    on_cpu, told_on_cpu = trained(monkeypatch, "cpu")
    recorded, told = trained(monkeypatch, "cuda")
    plain, told_plainly = trained(monkeypatch, "cuda", recorded=False)
    for other, facts in ((on_cpu, told_on_cpu), (plain, told_plainly)):
        assert told == pytest.approx(facts, rel=2e-3)
        for key, value in recorded.items():
            torch.testing.assert_close(value.float(), other[key].float(), rtol=2e-2, atol=5e-3, msg=key)


@card
def test_a_model_that_waits_for_a_number_is_trained_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Waits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network("residual")

        def forward(self, x: torch.Tensor) -> Any:
            return self.inner(x) * (1.0 if float(x.sum()) < math.inf else 0.0)

    _, told = trained(monkeypatch, "cuda", model=Waits())
    _, told_plainly = trained(monkeypatch, "cuda")
    assert told == pytest.approx(told_plainly, rel=2e-3)


@card
def test_divergence_is_told_with_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_for("plain", 256)
    model = network("plain")
    with pytest.raises(TrialError, match=r"training diverged at step \d+ of 32"):
        fit(model, task.train, lambda o, t: cross_entropy(o, t) * math.inf, None, SCHEDULE, 0, quiet)


@card
def test_a_recorded_step_is_replayed() -> None:
    calls = 0
    total = torch.zeros((), device="cuda")

    def step(inputs: Any, targets: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        total.add_(inputs["x"].sum())
        return total.clone()

    run = Recorded(step)
    for i in range(10):
        found = run({"x": torch.full((2,), float(i), device="cuda")}, None)
    assert calls == 4, "three plain steps and the recording"
    assert float(found) == float(total) == 2 * sum(range(10))


def test_a_model_is_back_on_the_processor_even_after_a_failure() -> None:
    class Moved(nn.Conv2d):
        places: ClassVar[list[object]] = []

        def _apply(self, *args: Any, **kwargs: Any) -> Any:
            found = args[0](torch.empty(1, 2, 2, 2))
            lies = "last" if found.is_contiguous(memory_format=torch.channels_last) else "first"
            self.places.append((found.device.type, lies))
            return self

    model = Moved(1, 1, 1, device="meta")
    example = {"x": np.zeros((1, 1, 2, 2), np.float32)}
    with pytest.raises(KeyError), placed(model, torch.device("meta"), example):
        raise KeyError
    assert model.places == [("meta", "last"), ("cpu", "first")]


@pytest.mark.parametrize(("views", "lies"), [(False, torch.channels_last), (True, torch.contiguous_format)])
def test_a_model_that_views_its_values_keeps_channels_first(views: bool, lies: torch.memory_format) -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6 * 36, 2)

        def forward(self, x: torch.Tensor) -> Any:
            y = self.conv(x)
            return self.head(y.view(len(y), -1) if views else y.flatten(1))

    model = Views().train()
    before = copy.deepcopy(model.state_dict())
    with placed(model, torch.device("cpu"), {"x": np.zeros((2, 3, 8, 8), np.float32)}):
        assert model.conv.weight.is_contiguous(memory_format=lies)
        model(torch.zeros(2, 3, 8, 8))
    assert model.conv.weight.is_contiguous()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("has", "dtype"), [("avx512_bf16", torch.bfloat16), ("avx512_f", torch.float32)])
def test_a_processor_computes_in_what_it_has(has: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {has: True})
    with precision(torch.device("cpu")):
        assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == dtype


def test_a_teacher_answers_where_the_inputs_are() -> None:
    model = network("plain")
    inputs = tensors(task_for("plain").train.read([0, 1]).inputs)
    teach = Teacher(model)
    assert torch.equal(teach(inputs)["output"], surgery.call(model, inputs)["output"])
    on_meta = teach({name: x.to("meta") for name, x in inputs.items()})
    assert on_meta["output"].device.type == "meta"
    assert {p.device.type for p in model.parameters()} == {"cpu"}, "the original stays where it was"
    before = copy.deepcopy(model.state_dict())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
