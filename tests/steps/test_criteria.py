"""Criteria by hand, their agreement where the formulas agree, and the surgeon against brute force."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.errors import TrialError
from laconic.steps.prune import obs
from laconic.steps.prune.criteria import CRITERIA, Part, normalised, woodfisher
from laconic.steps.prune.cut import Cut, Granularity
from laconic.steps.prune.evidence import Evidence, gather, portions
from tests.networks import context, network, task_for

GENERATOR = torch.Generator()


def part(weight: Tensor, **evidence: Any) -> Part:
    """Single weights."""
    out, inputs = weight.shape
    return Part(Evidence(weight, **evidence), Cut(torch.arange(out), 1, torch.arange(inputs), 1))


def read_by(weight: Tensor, **evidence: Any) -> Part:
    """Channels that a layer reads."""
    out, inputs = weight.shape
    return Part(Evidence(weight, **evidence), Cut(torch.arange(out), out, torch.arange(inputs), 1))


def score(name: str, *parts: Part) -> list[float]:
    return CRITERIA[name].score(parts, GENERATOR).tolist()


W = torch.tensor([[1.0, -2.0], [3.0, 0.0]])
G = torch.tensor([[[1.0, 1.0], [0.0, 2.0]], [[-1.0, 0.5], [1.0, 0.0]]])  # two samples


@pytest.mark.parametrize(
    ("name", "single", "channels"),
    [
        ("l1", [1, 2, 3, 0], [4, 2]),
        ("l2", [1, 4, 9, 0], [10, 4]),
        ("lamp", [1 / 14, 4 / 13, 1, 0], [1, 4 / 14]),
        ("taylor", [1, (4 + 1) / 2, 9 / 2, 0], [(1 + 4) / 2, (4 + 1) / 2]),
        ("taylor_abs", [1, 3 / 2, 3 / 2, 0], [3 / 2, 3 / 2]),
        ("obd", [1 / 2, 4 * 1.25 / 4, 9 / 4, 0], [1 / 2 + 9 / 4, 5 / 4]),
    ],
)
def test_by_hand(name: str, single: list[float], channels: list[float]) -> None:
    assert score(name, part(W, gradients=G)) == pytest.approx(single)
    assert score(name, read_by(W, gradients=G)) == pytest.approx(channels)


def test_a_channel_of_two_readers_is_scored_with_both() -> None:
    """Where one reader undoes what the other does, nothing is lost."""
    there, back = read_by(W, gradients=G), read_by(W, gradients=-G)
    assert score("taylor", there, back) == [0, 0]
    assert score("obd", there, back) == pytest.approx([2 * x for x in score("obd", there)])


def test_activations_norms_and_medians_by_hand() -> None:
    wide = Part(Evidence(torch.ones(1, 4), zeros=torch.tensor([0.25, 0.75])), Cut(*_columns(1, 4), 2))
    assert score("apoz", wide) == [-0.25, -0.75]
    norm = Part(Evidence(torch.tensor([[-2.0], [0.5]])), Cut(torch.arange(2), 1, torch.arange(1), 1))
    assert score("bn_scale", norm) == [2.0, 0.5]
    filters = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    giver = Part(Evidence(filters), Cut(torch.arange(3), 1, torch.arange(2), 2))
    middle = [5 + 1, 5 + 18**0.5, 1 + 18**0.5]
    assert score("geometric_median", giver) == pytest.approx(middle)


def _columns(rows: int, columns: int) -> tuple[Tensor, int, Tensor]:
    return torch.arange(rows), rows, torch.arange(columns)


def test_lamp_gives_the_largest_one_and_counts_ties_once() -> None:
    assert normalised(torch.tensor([2.0, 1.0, 1.0])).tolist() == pytest.approx([1, 1 / 3, 1 / 4])
    assert normalised(torch.zeros(3)).tolist() == [0, 0, 0]


def test_random_follows_the_seed() -> None:
    draws = [CRITERIA["random"].score([part(W)], torch.Generator().manual_seed(seed)).tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


# ----------------------------------------------------------------------------------------------------------- woodfisher


@pytest.mark.parametrize(("samples", "size"), [(5, 1), (5, 3), (3, 6)])
def test_woodfisher_is_the_block_of_the_inverse(samples: int, size: int) -> None:
    """By the definition: F written out, inverted, its block inverted; on both sides of samples < numbers."""
    torch.manual_seed(0)
    weight, gradients = torch.randn(2, 6), torch.randn(samples, 2, 6)
    cut = Cut(torch.arange(2), 1, torch.arange(6), size)
    found = woodfisher([Part(Evidence(weight, gradients=gradients), cut)], GENERATOR)
    g = gradients.flatten(1).double()
    damping = 0.01 * g.square().sum() / samples**2
    inverse = torch.linalg.inv(damping * torch.eye(12, dtype=torch.float64) + g.T @ g / samples)
    for unit, numbers in enumerate(torch.arange(12).reshape(-1, size)):
        w = weight.flatten()[numbers].double()
        wanted = w @ torch.linalg.inv(inverse[numbers][:, numbers]) @ w / 2
        torch.testing.assert_close(found[unit], wanted)


# ------------------------------------------------------------------------------------------------------------------ obs


def rows_of(n: int = 64, inputs: int = 6) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(n, inputs, dtype=torch.float64) @ torch.randn(inputs, inputs, dtype=torch.float64)


def brute(w: Tensor, matrix: Tensor, gone: tuple[int, ...]) -> float:
    """The least (w - w')' M (w - w') over w' with zeros at ``gone``."""
    kept = [i for i in range(len(w)) if i not in gone]
    best = torch.zeros_like(w)
    best[kept] = torch.linalg.solve(matrix[kept][:, kept], (matrix @ w)[kept])
    return float((w - best) @ matrix @ (w - best))


@pytest.mark.parametrize("width", [1, 2, 3])
def test_what_a_removal_costs_is_what_the_best_update_leaves(width: int) -> None:
    x, weight = rows_of(), torch.randn(2, 6, dtype=torch.float64)
    moments = (x.T @ x / len(x))[None]
    found = obs.losses(weight, moments, Cut(torch.arange(2), 1, torch.arange(6), width))
    matrix = obs.damped(moments)[0]
    wanted = [brute(w, matrix, tuple(c)) for w in weight for c in torch.arange(6).reshape(-1, width).tolist()]
    assert found.tolist() == pytest.approx(wanted)
    channels = obs.losses(weight, moments, Cut(torch.arange(2), 2, torch.arange(6), width))
    assert channels.tolist() == pytest.approx(torch.tensor(wanted).reshape(2, -1).sum(0).tolist())


@pytest.mark.parametrize("width", [1, 2])
def test_channels_go_in_the_order_of_what_all_that_went_leave_unexplained(width: int) -> None:
    matrices, weights, errors = [], [], []
    for seed in (1, 2):  # two layers read the channels, the second on a scale of its own
        torch.manual_seed(seed)
        x, w = torch.randn(64, 6, dtype=torch.float64), seed**8 * torch.randn(3, 6, dtype=torch.float64)
        matrices.append((x.T @ x @ torch.diag(torch.rand(6).double()) @ x.T @ x)[None])
        weights.append(w)

    def unexplained(gone: list[int]) -> float:
        columns = tuple(width * channel + i for channel in gone for i in range(width))
        shares = []
        for w, moments in zip(weights, matrices, strict=True):
            matrix = obs.damped(moments)[0]
            shares.append(sum(brute(row, matrix, columns) for row in w) / float((w @ matrix * w).sum()))
        return sum(shares)

    gone: list[int] = []
    for _ in range(6 // width):
        left = [channel for channel in range(6 // width) if channel not in gone]
        gone.append(min(left, key=lambda channel: unexplained([*gone, channel])))
        errors.append(unexplained(gone))
    cut = Cut(torch.arange(3), 3, torch.arange(6), width)
    found = obs.in_turn([(w, moments, cut) for w, moments in zip(weights, matrices, strict=True)])
    assert found.argsort().tolist() == gone
    steps = torch.tensor([0.0, *errors], dtype=torch.float64).diff()
    assert found[gone].tolist() == pytest.approx(steps.cummax(0).values.tolist())


def test_of_two_channels_that_say_the_same_one_is_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:, 4] = x[:, 0]
    weight = torch.tensor([[1.5, 0.5, 0.4, 0.3, 1.5]], dtype=torch.float64)
    part = (weight, (x.T @ x / len(x))[None], Cut(torch.arange(1), 1, torch.arange(5), 1))
    assert obs.losses(*part)[[0, 4]].max() < obs.losses(*part)[1:4].min()
    assert set(obs.in_turn([part]).argsort()[1:4].tolist()) == {1, 2, 3}
    monkeypatch.setattr(obs, "_TURNS", 2)  # three at once: nobody has made up for the first
    assert {0, 4} < set(obs.in_turn([part]).argsort()[:3].tolist())


def test_grouped_readers_lose_a_channel_in_each_group() -> None:
    x = torch.randn(2, 64, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moments, weight = x.transpose(1, 2) @ x / 64, torch.randn(6, 4, dtype=torch.float64)
    cut = Cut(torch.arange(6), 6, torch.arange(4), 1)
    first = obs.losses(weight, moments, cut).argsort()[0]
    assert obs.in_turn([(weight, moments, cut)]).argsort()[0] == first
    halves = [
        (weight[3 * g : 3 * g + 3], moments[g : g + 1], Cut(torch.arange(3), 3, torch.arange(4), 1)) for g in (0, 1)
    ]
    whole = [float(torch.einsum("ok,kl,ol->", w, obs.damped(m)[0], w)) for w, m, _ in halves]
    shares = [obs.losses(*half) for half in halves]
    torch.testing.assert_close(obs.in_turn([(weight, moments, cut)]).min(), (shares[0] + shares[1])[first] / sum(whole))


def test_the_update_is_the_least_squares_solution() -> None:
    x, weight = rows_of(), torch.randn(3, 6, dtype=torch.float64)
    moments = (x.T @ x / len(x))[None]
    mask = torch.rand(3, 6) < 0.5
    found = obs.compensated(weight, moments, mask)
    assert torch.equal(found != 0, mask)
    matrix = obs.damped(moments)[0]
    for w, new, kept in zip(weight, found, mask, strict=True):
        gone = tuple((~kept).nonzero().flatten().tolist())
        assert float((w - new) @ matrix @ (w - new)) == pytest.approx(brute(w, matrix, gone))


def test_greedy_takes_the_cheapest_weight_of_all_rows_each_time() -> None:
    x, weight = rows_of(), torch.randn(3, 6, dtype=torch.float64)
    moments, matrix = (x.T @ x / len(x))[None], obs.damped((x.T @ x / len(x))[None])[0]
    gone: list[set[int]] = [set(), set(), set()]
    for _ in range(9):
        now = [brute(w, matrix, tuple(g)) for w, g in zip(weight, gone, strict=True)]
        costs = {
            (r, q): brute(weight[r], matrix, (*gone[r], q)) - now[r]
            for r, q in itertools.product(range(3), range(6))
            if q not in gone[r]
        }
        row, column = min(costs, key=costs.__getitem__)
        gone[row].add(column)
    cut = Cut(torch.arange(3), 1, torch.arange(6), 1)
    mask = obs.selected(weight, moments, 9, cut, None)
    assert [set((~kept).nonzero().flatten().tolist()) for kept in mask] == gone


@pytest.mark.parametrize("limit", [None, 0])
@pytest.mark.parametrize("groups", [1, 2])
def test_patterns_are_kept_whether_greedy_or_swept(
    groups: int, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit is not None:
        monkeypatch.setattr(obs, "_MOST_GREEDY", limit)
        monkeypatch.setattr(obs, "_MOST_SOLVED", limit)
    torch.manual_seed(3)
    layer = nn.Conv2d(8 * groups, 4 * groups, 3, groups=groups)
    cut = Granularity("2:4").cut(layer)
    assert isinstance(cut, Cut)
    x = torch.randn(groups, 400, 72)
    moments = x.transpose(1, 2) @ x / 400
    weight = layer.weight.detach().reshape(4 * groups, -1)
    mask = obs.selected(weight, moments, 0, cut, (2, 4))
    assert mask.reshape(4 * groups, 2, 4, 3, 3).sum(2).eq(2).all()
    updated = obs.compensated(weight, moments, mask)
    assert torch.equal(updated != 0, mask)
    left, without = (_error(weight - new, moments) for new in (updated, weight * mask))
    assert left < without


def _error(change: Tensor, moments: Tensor) -> float:
    rows = change.reshape(len(moments), -1, change.shape[1])
    return float(torch.einsum("gck,gkl,gcl->", rows, moments, rows))


def test_the_sweep_comes_near_to_greedy_and_beats_magnitude(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    x = torch.randn(500, 40) @ torch.randn(40, 40)
    moments, weight = (x.T @ x / 500)[None], torch.randn(8, 40)
    cut = Cut(torch.arange(8), 1, torch.arange(40), 1)

    def error() -> float:
        mask = obs.selected(weight, moments, 160, cut, None)
        assert int(mask.sum()) == 160
        return _error(weight - obs.compensated(weight, moments, mask), moments)

    exact = error()
    monkeypatch.setattr(obs, "_MOST_GREEDY", 0)
    swept = error()
    monkeypatch.setattr(obs, "_MOST_SOLVED", 0)
    approximate = error()
    largest = weight.abs() >= weight.abs().flatten().topk(160).values[-1]
    magnitude = _error(weight * ~largest, moments)
    assert exact < swept < approximate < 0.9 * magnitude
    assert swept < 0.6 * magnitude


def test_the_sweep_is_exact_where_all_that_stays_comes_later() -> None:
    x, weight = rows_of(), torch.randn(3, 6, dtype=torch.float64)
    moments = (x.T @ x / len(x))[None]
    mask = torch.arange(6).expand(3, -1) >= torch.tensor([[1], [2], [4]])
    matrix = obs.damped(moments)
    swept, kept = obs.sweep(weight[None], matrix, 1.0, None, mask[None])
    assert torch.equal(kept[0], mask)
    torch.testing.assert_close(swept[0], obs.solved(weight, matrix[0], mask))


def test_inputs_that_are_never_active_go_first() -> None:
    x = rows_of().float()
    x[:, 2] = 0
    moments, weight = (x.T @ x / len(x))[None], torch.ones(2, 6)
    mask = obs.selected(weight, moments, 10, Cut(torch.arange(2), 1, torch.arange(6), 1), None)
    assert not mask[:, 2].any()


# ------------------------------------------------------------------------------------------------------------- evidence


def test_gradients_are_those_of_each_sample() -> None:
    model, task = network("plain"), task_for("plain", n=3)
    found = gather(model, ["conv1", "fc2"], frozenset({"gradients"}), task, context())
    batch = task.train.read(range(3))
    assert task.loss is not None
    loss = task.loss(surgery.call(model, {"x": torch.as_tensor(batch.inputs["x"])}), torch.as_tensor(batch.targets))
    loss.backward()
    for name in ("conv1", "fc2"):
        gradients = found[name].gradients
        assert gradients is not None
        assert gradients.shape[0] == 3
        wanted = surgery.weighted_layers(model)[name].weight.grad
        assert wanted is not None
        torch.testing.assert_close(gradients.mean(0), wanted.flatten(1))


def test_moments_and_zeros_are_those_of_the_inputs() -> None:
    model, task = network("mlp"), task_for("mlp", n=20)
    found = gather(model, ["1", "3"], frozenset({"moments", "zeros"}), task, context())["3"]
    x = torch.as_tensor(task.train.read(range(20)).inputs["x"])
    read = torch.relu(model[1](x.flatten(1))).detach()  # type: ignore[index]
    assert found.moments is not None
    assert found.zeros is not None
    torch.testing.assert_close(found.moments[0], read.T @ read / 20)
    torch.testing.assert_close(found.zeros, (read == 0).float().mean(0))


def test_frozen_parameters_stay_frozen() -> None:
    model = network("plain").requires_grad_(False)
    gather(model, ["conv1"], frozenset({"gradients"}), task_for("plain", n=2), context())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_layer_that_is_never_called_has_no_inputs() -> None:
    model = network("plain")
    model.spare = nn.Linear(3, 3)
    with pytest.raises(TrialError, match="spare is never called"):
        gather(model, ["spare"], frozenset({"moments"}), task_for("plain", n=2), context())


def test_portions_fit_the_memory() -> None:
    numbers = dict.fromkeys("abcde", 2**20)
    assert list(portions(numbers, frozenset({"gradients"}))) == [["a", "b"], ["c", "d"], ["e"]]
    assert list(portions(numbers, frozenset({"moments"}))) == [list("abcde")]
