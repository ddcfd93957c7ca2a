"""The trainer: it learns, repeats by its seed, stops when it diverges, and says what it wants."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Context, Recipe
from laconic.errors import DataError, RecipeError, TrialError
from laconic.steps.train import fit as room
from laconic.steps.train.fine_tune import FineTune
from laconic.steps.train.fit import Penalised, Schedule, distillation, fit
from tests.networks import Rows, context, cross_entropy, first_output, network, task_for, tensors


def schedule(**changes: Any) -> Schedule:
    settings = {"epochs": 4, "lr": 3e-3, "batch": 32, "weight_decay": 1e-4, "distill": 0.0, "temperature": 4.0}
    return Schedule(**{**settings, **changes})


def quiet(text: str, fraction: float) -> None:
    pass


def accuracy(model: nn.Module, name: str = "plain") -> float:
    batch = task_for(name, 256).search.read(range(256))
    with torch.no_grad():
        found = surgery.call(model, tensors(batch.inputs))["output"].argmax(1).numpy()
    return float((found == batch.targets).mean())


@pytest.mark.parametrize("name", ["plain", "residual", "mlp"])
def test_it_learns(name: str) -> None:
    model, task = network(name), task_for(name, 256)
    before = accuracy(model, name)
    facts = fit(model, task.train, task.loss, None, schedule(epochs=8, lr=5e-3), 0, quiet)
    assert facts["steps"] == 64
    assert facts["last_loss"] < 0.3 * facts["first_loss"]
    assert before < 0.6
    assert accuracy(model, name) > 0.95
    assert not model.training


def test_what_costs_something_is_made_small() -> None:
    class Priced(Penalised):
        def forward(self, weight: Tensor) -> Tensor:
            self.penalty = 10 * weight.square().sum()
            return weight

    task, sizes, losses = task_for("mlp", 64), {}, {}
    for priced in (False, True):
        model = network("mlp")
        first = next(iter(surgery.weighted_layers(model).values()))
        if priced:
            nn.utils.parametrize.register_parametrization(first, "weight", Priced())
        told = fit(model, task.train, task.loss, None, schedule(), 0, quiet)
        sizes[priced], losses[priced] = first.weight.square().sum().item(), told["first_loss"]
    assert sizes[True] < 0.5 * sizes[False]
    assert losses[True] > losses[False] + 1, "it is part of the loss"


def test_the_seed_decides() -> None:
    task = task_for("plain", 128)
    states = []
    for seed in (3, 3, 4):
        model = network("plain")
        torch.manual_seed(int(torch.randint(1000, ()).item()))  # the generator's state before must not matter
        facts = fit(model, task.train, task.loss, None, schedule(epochs=1), seed, quiet)
        states.append((facts, copy.deepcopy(model.state_dict())))
    assert states[0][0] == states[1][0]
    assert all(torch.equal(value, states[1][1][key]) for key, value in states[0][1].items())
    assert states[0][0] != states[2][0]


def test_the_seed_decides_about_dropout_too() -> None:
    task, losses = task_for("mlp", 128), []
    for noise in (1, 2):
        layers = nn.Linear(192, 4), nn.Dropout(0.5)
        nn.init.constant_(layers[0].weight, 0.01)
        nn.init.zeros_(layers[0].bias)
        torch.manual_seed(noise)
        losses.append(fit(nn.Sequential(nn.Flatten(), *layers), task.train, task.loss, None, schedule(), 3, quiet))
    assert losses[0] == losses[1]


def test_samples_are_seen_once_per_epoch() -> None:
    seen: list[list[int]] = []

    class Watched(Rows):
        def read(self, indices: Any) -> Any:
            seen.append(list(indices))
            return super().read(indices)

    rows = task_for("plain", 70).train
    fit(network("plain"), Watched(rows.inputs, rows.targets), cross_entropy, None, schedule(epochs=2), 0, quiet)
    assert [len(batch) for batch in seen] == [32] * 4
    first, second = seen[0] + seen[1], seen[2] + seen[3]
    assert len(set(first)) == len(set(second)) == 64
    assert first != second


@pytest.mark.parametrize(
    ("epochs", "n", "steps"), [(1, 64, 2), (0.5, 128, 2), (2.5, 64, 5), (0.001, 64, 1), (3, 10, 3)]
)
def test_how_many_steps(epochs: float, n: int, steps: int) -> None:
    told: list[tuple[str, float]] = []
    task = task_for("plain", n)
    facts = fit(network("plain"), task.train, task.loss, None, schedule(epochs=epochs), 0, lambda *a: told.append(a))
    assert facts["steps"] == steps
    assert [fraction for _, fraction in told] == pytest.approx([(i + 1) / steps for i in range(steps)])
    assert "loss" in told[0][0]


def test_the_rate_warms_up_and_falls() -> None:
    rates = [room._rate(step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert max(rates) == pytest.approx(1.0)
    assert all(a > b for a, b in itertools.pairwise(rates[5:]))
    assert rates[52] == pytest.approx(0.5 * (1 + math.cos(math.pi * 47 / 95)))
    assert 0 < rates[-1] < 0.01
    assert room._rate(0, 1) == 1.0


# ----------------------------------------------------------------------------------------------------------------- loss


def test_distillation_by_hand() -> None:
    """T^2 sum_i p_i (log p_i - log q_i), p the teacher's softmax over T, q the student's."""
    student, teacher, temperature = [1.0, -0.5, 0.25], [0.5, 2.0, -1.0], 3.0

    def softmax(values: list[float]) -> list[float]:
        powers = [math.exp(v / temperature) for v in values]
        return [power / sum(powers) for power in powers]

    p, q = softmax(teacher), softmax(student)
    wanted = temperature**2 * sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
    found = distillation({"y": torch.tensor([student])}, {"z": torch.tensor([teacher])}, temperature)
    assert float(found) == pytest.approx(wanted, rel=1e-5)
    two = distillation({"y": torch.tensor([student, teacher])}, {"z": torch.tensor([teacher, teacher])}, temperature)
    assert float(two) == pytest.approx(wanted / 2, rel=1e-5)
    tokens = distillation({"y": torch.tensor([[student] * 2])}, {"z": torch.tensor([[teacher] * 2])}, temperature)
    assert float(tokens) == pytest.approx(wanted, rel=1e-5), "the mean over places, as over samples"


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_shares_of_the_loss(share: float) -> None:
    model, teacher, task = network("plain"), network("plain", seed=5), task_for("plain")
    batch = task.train.read(range(8))
    inputs, targets = tensors(batch.inputs), torch.as_tensor(batch.targets)

    def teach(given: Any) -> Any:
        return surgery.call(teacher, given)

    found = room._loss(model, inputs, targets, task.loss, teach, schedule(distill=share, temperature=2.0))
    outputs, wanted = surgery.call(model, inputs), surgery.call(teacher, inputs)
    hard = F.cross_entropy(first_output(outputs), targets)
    soft = distillation(outputs, wanted, 2.0)
    assert found.item() == pytest.approx(((1 - share) * hard + share * soft).item(), rel=1e-5)


def test_without_labels_the_teacher_alone_decides() -> None:
    teacher, task = network("plain", seed=5), task_for("plain", 256, labels=False)
    model = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))

    def teach(given: Any) -> Any:
        return surgery.call(teacher, given)

    facts = fit(model, task.train, None, teach, schedule(distill=0.3), 0, quiet)
    assert facts["last_loss"] < 0.7 * facts["first_loss"]


def test_the_teacher_is_not_trained() -> None:
    teacher, task = network("plain", seed=5), task_for("plain")
    before = copy.deepcopy(teacher.state_dict())

    def teach(given: Any) -> Any:
        assert not torch.is_grad_enabled()
        return surgery.call(teacher, given)

    fit(network("plain"), task.train, task.loss, teach, schedule(distill=0.5), 0, quiet)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


@pytest.mark.parametrize("labels", [False, True])
def test_nothing_to_train_towards(labels: bool) -> None:
    task = task_for("plain", labels=labels)
    with pytest.raises(DataError, match="nothing to train towards: wanted labels or a teacher"):
        fit(network("plain"), task.train, None, None, schedule(), 0, quiet)


def test_a_loss_without_labels_is_refused() -> None:
    task = task_for("plain", labels=False)
    with pytest.raises(DataError, match="nothing to train towards"):
        fit(network("plain"), task.train, cross_entropy, None, schedule(), 0, quiet)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_trial(value: float) -> None:
    steps = 0

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        return cross_entropy(outputs, targets) + (value if steps == 3 else 0.0)

    with pytest.raises(TrialError, match=r"training diverged at step 3 of 8; a smaller learning rate may help"):
        fit(network("plain"), task_for("plain").train, loss, None, schedule(), 0, quiet)


def test_a_rate_that_is_far_too_high_ends_the_trial_or_stays_finite() -> None:
    model = network("plain")
    try:
        fit(model, task_for("plain", 256).train, cross_entropy, None, schedule(lr=1e30), 0, quiet)
    except TrialError:
        return
    assert all(torch.isfinite(p).all() for p in model.parameters())


# ------------------------------------------------------------------------------------------------------------ the step


def tune(settings: FineTune, given: Context | None = None, **data: Any) -> tuple[nn.Module, dict[str, Any]]:
    model, (facts,) = Recipe((settings,)).apply(network("plain"), task_for("plain", **data), given or context())
    return model, facts


def test_fine_tuning_improves() -> None:
    model, facts = tune(FineTune(epochs=8, lr=5e-3, batch=32), n=256)
    assert accuracy(model) > 0.95
    assert facts["last_loss"] < facts["first_loss"]


def test_the_original_teaches() -> None:
    teacher = network("plain", seed=5)
    calls = 0

    def reference(inputs: Any) -> Any:
        nonlocal calls
        calls += 1
        return surgery.call(teacher, inputs)

    tune(FineTune(epochs=1, distill=0.5), context(reference=reference))
    assert calls == 1
    tune(FineTune(epochs=1, distill=0.0), context(reference=reference))
    assert calls == 1, "no share, no lesson"
    tune(FineTune(epochs=1, distill=0.0), context(reference=reference), labels=False)
    assert calls == 2, "without labels there is nobody else"
    with pytest.raises(DataError):
        tune(FineTune(epochs=1), labels=False)


def test_without_training_data() -> None:
    with pytest.raises(RecipeError, match="FineTune needs training data; run without --no-train"):
        tune(FineTune(), trainable=False)


def test_no_epochs_change_nothing() -> None:
    model, facts = tune(FineTune(epochs=0))
    before = network("plain").state_dict()
    assert facts == {"steps": 0}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_pruned_and_quantized_models_are_trained_through() -> None:
    from laconic.steps.prune.channels import PruneChannels
    from laconic.steps.quantize.post_training import Quantize

    task = task_for("plain", 256)
    trained, _ = Recipe((FineTune(epochs=8, lr=5e-3, batch=32),)).apply(network("plain"), task, context())
    hurt, _ = Recipe((PruneChannels(0.6), Quantize())).apply(trained, task, context())
    model, (facts,) = Recipe((FineTune(epochs=8, lr=5e-3, batch=32),)).apply(hurt, task, context())
    assert facts["last_loss"] < 0.6 * facts["first_loss"]
    assert accuracy(trained) > 0.95
    assert accuracy(hurt) < 0.8
    assert accuracy(model) > 0.9
