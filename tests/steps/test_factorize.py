"""Layers as several smaller ones: exact where they can be, the least error where not, at the cost that was said."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic import models, surgery
from laconic.core import Recipe, Step, Target, Task
from laconic.errors import RecipeError, TrialError
from laconic.profile import profile
from laconic.runtime import onnxruntime
from laconic.steps.cluster.kmeans import Cluster
from laconic.steps.factorize import cp, fitting, separable, spatial, svd, tucker
from laconic.steps.factorize.cp import CP
from laconic.steps.factorize.separable import DepthwiseSeparable
from laconic.steps.factorize.sites import Site, liked
from laconic.steps.factorize.spatial import SpatiallySeparable
from laconic.steps.factorize.svd import LowRank
from laconic.steps.factorize.tucker import Tucker2
from laconic.steps.prune.channels import PruneChannels
from laconic.steps.quantize.post_training import Quantize
from tests.networks import INTEGER, NETWORKS, Rows, context, inputs_of, network, task_for, tensors

MODULES: dict[type[Any], ModuleType] = {
    LowRank: svd,
    Tucker2: tucker,
    CP: cp,
    SpatiallySeparable: spatial,
    DepthwiseSeparable: separable,
}
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "padding": 1, "stride": 2, "bias": False},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
    "oblong": {"kernel_size": (5, 2), "padding": (1, 0), "stride": (1, 2), "dilation": (2, 1)},
    "same": {"kernel_size": (5, 3), "padding": "same"},
    "reflected": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
}


def convolution(kind: str) -> nn.Conv2d:
    return nn.Conv2d(4, 6, **CONVOLUTIONS[kind])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def task_of(x: Tensor) -> Task:
    return dataclasses.replace(task_for(), train=Rows({"x": x.numpy()}, None))


def apply(step: Step, model: nn.Module, x: Tensor, **changes: Any) -> tuple[Any, Mapping[str, Any]]:
    """The model behind ``step``, calibrated on ``x``, and the facts; what the facts rebuild computes the same."""
    made, facts = Recipe((step,)).apply(model.eval(), task_of(x), context(**changes))
    again = Recipe((step,)).restore(model, facts)
    again.load_state_dict(made.state_dict())
    with torch.no_grad():
        assert torch.equal(made(x), again(x))
    return made, facts[0]


def close(found: nn.Module, wanted: nn.Module, x: Tensor, tolerance: float = 1e-5) -> bool:
    with torch.no_grad():
        y = wanted(x)
        return bool((found(x) - y).abs().max() <= tolerance * y.abs().max())


@pytest.fixture
def dear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors are taken even where they cost more than the layer."""
    for module in MODULES.values():
        monkeypatch.setattr(module, "too_dear", lambda site, macs: None)


# --------------------------------------------------------------------------------------------------------------- exact


@pytest.mark.usefixtures("dear")
@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("step", [LowRank, Tucker2, SpatiallySeparable, DepthwiseSeparable])
def test_exact_at_full_rank(step: type[Any], kind: str) -> None:
    layer, x = convolution(kind), torch.randn(16, 4, 9, 8, generator=generator())
    o, i, height, width = layer.weight.shape
    o //= layer.groups
    full = {
        LowRank: min(o, i * height * width),
        Tucker2: max(o, i),
        SpatiallySeparable: min(i * height, o * width),
        DepthwiseSeparable: height * width,
    }[step]
    model, facts = apply(step(layers={"0": full}), nn.Sequential(layer), x)
    assert list(facts["layers"]) == ["0"]
    assert close(model, layer, x)
    assert not close(apply(step(layers={"0": 1}), nn.Sequential(layer), x)[0], layer, x, 0.01)


@pytest.mark.parametrize("tokens", [(), (5,), (2, 3)])
def test_a_linear_layer_on_any_axes(tokens: tuple[int, ...]) -> None:
    layer = nn.Linear(12, 10)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(10, 3, generator=generator()) @ torch.randn(3, 12, generator=generator(1)))
    x = torch.randn(40, *tokens, 12, generator=generator(2))
    model, facts = apply(LowRank(layers={"0": 3}), nn.Sequential(layer), x)
    places = int(np.prod(tokens, dtype=int))
    assert facts["layers"]["0"]["macs"] == [120 * places, 3 * 22 * places]
    assert close(model, layer, x)


def test_other_dimensions_of_space() -> None:
    for layer, size in ((nn.Conv1d(4, 6, 5, 2, 1), (12,)), (nn.Conv3d(4, 6, 2), (4, 4, 4))):
        x = torch.randn(8, 4, *size, generator=generator())
        for step in (LowRank(ratio=0.2), Tucker2(ratio=0.2), DepthwiseSeparable(ratio=0.2)):
            model, facts = apply(step, nn.Sequential(layer), x)
            assert facts["layers"]
            assert model(x).shape == layer(x).shape


def low_rank_kernel(step: type[Any]) -> tuple[Tensor, int]:
    """A kernel (16, 12, 3, 3) that the technique can write exactly, and at which rank."""
    draw = [torch.randn(16, 12, 3, 3, 4, generator=generator(seed)) for seed in range(4)]
    a, b, c, d = (w[:n, 0, 0, 0] if n == 16 else w[0, :n, 0, 0] for w, n in zip(draw, (16, 12, 3, 3), strict=True))
    if step is LowRank:
        return torch.einsum("or,iyxr->oiyx", a, draw[1][0]), 4
    if step is Tucker2:
        return torch.einsum("op,pqyx,iq->oiyx", a, draw[2][:4, :4, :, :, 0], b), 4
    if step is CP:
        return torch.einsum("or,ir,yr,xr->oiyx", a, b, c, d), 4
    if step is SpatiallySeparable:
        return torch.einsum("oxr,iyr->oiyx", draw[0][:, 0, 0], draw[1][0, :, 0]), 4
    return torch.einsum("oi,iyx->oiyx", draw[0][:, :, 0, 0, 0], draw[1][0, :, :, :, 0]), 1


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("step", MODULES)
def test_a_kernel_of_low_rank_is_found(step: type[Any], groups: int) -> None:
    kernel, rank = low_rank_kernel(step)
    layer = nn.Conv2d(12 * groups, 16 * groups, 3, padding=1, groups=groups)
    with torch.no_grad():
        layer.weight.copy_(torch.cat([kernel, 2 * kernel.flip(0)][:groups]))
    x = torch.randn(8, 12 * groups, 8, 8, generator=generator(9))
    model, facts = apply(step(layers={"0": rank}), nn.Sequential(layer), x)
    (fact,) = facts["layers"].values()
    assert set(fact["ranks"]) == {rank}
    assert fact["relative_error"] < 1e-6
    assert close(model, layer, x, 1e-3 if step is CP else 1e-5)
    assert not close(model, nn.Conv2d(12 * groups, 16 * groups, 3, padding=1, groups=groups), x, 0.1)


# --------------------------------------------------------------------------------------------------------------- error


def test_low_ranks_error_is_the_variance_of_the_directions_left_out() -> None:
    draw = generator()
    w = torch.randn(2, 8, 10, generator=draw, dtype=torch.double)
    x = torch.randn(2, 5000, 10, generator=draw).double() @ torch.randn(2, 10, 10, generator=draw).double()
    centred = x - x.mean(1, keepdim=True)
    directions, variances = svd.principal(w, x)
    damping = 0.01 * centred.square().mean()
    for rank in (1, 3, 7):
        u, v = svd.low_rank(w, directions, variances, rank)
        error = w - u @ v
        lost = (centred @ error.transpose(1, 2)).square().sum((1, 2)) / 5000 + damping * error.square().sum((1, 2))
        torch.testing.assert_close(lost, variances[:, rank:].sum(1))
        usual_u, s, usual_v = torch.linalg.svd(w, full_matrices=False)
        usual = w - (usual_u[:, :, :rank] * s[:, None, :rank]) @ usual_v[:, :rank]
        assert torch.all(
            (centred @ error.transpose(1, 2)).square().sum((1, 2)) < (centred @ usual.mT).square().sum((1, 2))
        )
        z = centred @ v.transpose(1, 2)
        torch.testing.assert_close(
            z.square().mean(1), torch.ones(2, rank).double(), rtol=0.1, atol=0
        )  # a little less for the damping


def test_with_white_inputs_low_rank_is_the_singular_value_decomposition() -> None:
    w, white = torch.randn(1, 8, 10, dtype=torch.double), 10 * torch.linalg.qr(torch.randn(40, 10).double())[0][None]
    white -= white.mean(1, keepdim=True)
    white = (white @ torch.linalg.inv(torch.linalg.cholesky(white[0].T @ white[0])).T)[0][None]
    u, v = svd.low_rank(w, *svd.principal(w, white), 3)
    s = torch.linalg.svdvals(w[0])
    torch.testing.assert_close((w - u @ v).square().sum(), s[3:].square().sum())


def test_the_separable_kernels_error_is_that_of_the_singular_values() -> None:
    w = torch.randn(1, 6, 5, 3, 4, generator=generator(), dtype=torch.double)
    horizontal, vertical = spatial.separable(w, 7)
    found = torch.einsum("gorx,griy->goiyx", horizontal, vertical)
    values = torch.linalg.svdvals(w[0].permute(1, 2, 0, 3).reshape(15, 24))
    torch.testing.assert_close((w - found).square().sum(), values[7:].square().sum())


def test_tuckers_iterations_beat_the_unfoldings_alone() -> None:
    w = torch.randn(1, 12, 10, 9, generator=generator(), dtype=torch.double)
    errors = []
    for iterations in (0, 1, 50):
        u, core, v = tucker.tucker2(w, (4, 5), iterations)
        errors.append(float((w - torch.einsum("gop,gpqk,giq->goik", u, core, v)).square().sum()))
        torch.testing.assert_close(u.transpose(1, 2) @ u, torch.eye(5, dtype=torch.double)[None])
    assert errors[2] < errors[1] < errors[0]


def test_cp_stays_well_conditioned() -> None:
    """This tensor has rank 3 and is the limit of tensors of rank 2, whose terms grow without end."""
    a, b = torch.eye(2, dtype=torch.double)
    w = sum(torch.einsum("i,j,k->ijk", *f) for f in ((a, a, b), (a, b, a), (b, a, a)))
    assert isinstance(w, Tensor)
    factors = cp.cp(w, 2)
    assert max(float(f.abs().max()) for f in factors) < 10
    more_terms_than_there_are = cp.cp(torch.einsum("i,j,k->ijk", *torch.randn(3, 4, dtype=torch.double)), 3)
    assert all(bool(torch.isfinite(f).all()) for f in more_terms_than_there_are)
    exact = cp.cp(w, 3)
    torch.testing.assert_close(torch.einsum("ir,jr,kr->ijk", *exact), w, rtol=0, atol=1e-2)


def test_the_last_factor_is_the_least_squares_one() -> None:
    draw = generator()
    x, y = (torch.randn(1, 4000, n, generator=draw, dtype=torch.double) + 1 for n in (12, 5))
    y = y + x[:, :, :5] ** 2
    start = fitting.Factors((3,), 0, (), torch.randn(1, 3, 12, generator=draw).double(), torch.zeros(1, 5, 3).double())
    made, bias, error = fitting.fitted(start, fitting.Rows(x, y))
    z = torch.cat([x[0] @ start.inner[0].T, torch.ones(4000, 1, dtype=torch.double)], 1)
    wanted = torch.linalg.lstsq(z, y[0]).solution.T  # 5 4
    torch.testing.assert_close(torch.cat([made.last[0], bias[:, None]], 1), wanted, rtol=0.03, atol=0.03)
    found = x[0] @ start.inner[0].T @ made.last[0].T + bias
    torch.testing.assert_close(found.mean(0), y[0].mean(0))
    variance = (y[0] - y[0].mean(0)).square().sum()
    assert error == pytest.approx(float((y[0] - found).square().sum() / variance), rel=1e-3)


def test_each_layer_makes_up_for_those_before_it() -> None:
    """Fitted in turn, the errors of the outputs are less than of layers that were fitted to the original's inputs."""
    original, x = network("residual"), tensors(inputs_of("residual", 64, 3))["x"]
    step = SpatiallySeparable(ratio=0.5, exclude=("stem.*",))
    in_turn, facts = apply(step, original, x)
    by_themselves = network("residual")
    for name in facts["layers"]:
        alone, _ = apply(SpatiallySeparable(layers={name: 0.5}), original, x)
        surgery.set_module(by_themselves, name, alone.get_submodule(name))
    with torch.no_grad():
        wanted = original(x)
        errors = [float((model(x) - wanted).square().mean()) for model in (in_turn, by_themselves)]
    assert errors[0] < 0.9 * errors[1]


# ---------------------------------------------------------------------------------------------------------------- cost


def test_macs_by_hand() -> None:
    """3x3, 8 to 16 channels, stride 2, from 10x12 to 5x6 places."""
    layer, x = nn.Conv2d(8, 16, 3, 2, 1), torch.randn(8, 8, 10, 12, generator=generator())
    wanted = (
        (LowRank(layers={"0": 4}), 30 * 4 * (72 + 16)),
        (Tucker2(layers={"0": 4}), 120 * 8 * 4 + 30 * 4 * 9 * 4 + 30 * 4 * 16),
        (CP(layers={"0": 4}), 120 * 8 * 4 + 5 * 12 * 3 * 4 + 30 * 3 * 4 + 30 * 4 * 16),
        (SpatiallySeparable(layers={"0": 4}), 5 * 12 * 4 * 8 * 3 + 30 * 16 * 4 * 3),
        (DepthwiseSeparable(layers={"0": 2}), 30 * 16 * 9 + 30 * 16 * 16),
    )
    for step, macs in wanted:
        model, facts = apply(step, nn.Sequential(layer), x)
        assert facts["layers"]["0"]["macs"] == [30 * 16 * 72, macs]
        assert profile(model, x).macs == macs


@pytest.mark.parametrize("name", ["residual", "shuffled", "depthwise"])
@pytest.mark.parametrize("step", MODULES)
def test_the_share_of_macs_that_was_asked_for_goes(step: type[Any], name: str) -> None:
    original, x = network(name), tensors(inputs_of(name, 32))["x"]
    model, facts = apply(step(ratio=0.3), original, x)
    layers = {layer.name: layer.macs for layer in profile(original, x).layers}
    assert facts["layers"]
    for layer, fact in facts["layers"].items():
        before, after = fact["macs"]
        assert before == layers[layer]
        least = set(fact["ranks"]) == {1}
        assert after < before if least else 0.4 * before < after <= 0.7 * before
    saved = sum(fact["macs"][0] - fact["macs"][1] for fact in facts["layers"].values())
    assert profile(model, x).macs == profile(original, x).macs - saved


def test_a_layer_whose_factors_cost_more_is_left_whole_and_said() -> None:
    layer = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    model, facts = apply(LowRank(ratio=0.5), nn.Sequential(layer), torch.randn(4, 8, 6, 6, generator=generator()))
    assert facts["left_whole"] == {"0": "its factors cost 2,880 MACs, the layer 2,592"}
    assert isinstance(model[0], nn.Conv2d)


def test_ranks_that_kernels_like() -> None:
    assert [liked(rank, 8) for rank in (1, 7, 15, 16, 23, 31)] == [1, 7, 15, 16, 16, 24]
    x = tensors(inputs_of("residual", 16))["x"]
    _, facts = apply(
        SpatiallySeparable(ratio=0.2), network("residual"), x, traits=dataclasses.replace(INTEGER, channel_multiple=8)
    )
    ranks = [fact["ranks"][0] for fact in facts["layers"].values()]
    assert max(ranks) >= 16
    assert all(rank % 8 == 0 for rank in ranks if rank >= 16)


def test_energy_keeps_the_least_rank_with_that_share_of_the_variance() -> None:
    layer = nn.Linear(32, 24)
    x = torch.randn(4000, 32, generator=generator())
    with torch.no_grad():
        u, _, v = torch.linalg.svd(torch.randn(24, 32, generator=generator()), full_matrices=False)
        layer.weight.copy_((u * torch.tensor([4.0, 2.0, 1.0] + [0.1] * 21)) @ v)
    variance = 16 + 4 + 1 + 21 * 0.01  # of the directions: all but the three largest have a hundredth
    for energy, rank in ((15 / variance, 1), (18 / variance, 2), (20.9 / variance, 3)):
        _, facts = apply(LowRank(energy=energy), nn.Sequential(layer), x)
        assert facts["layers"]["0"]["ranks"] == [rank]
    _, facts = apply(LowRank(energy=0.5, layers={"0": 4}), nn.Sequential(layer), x)
    assert facts["layers"]["0"]["ranks"] == [4]


def test_tuckers_ranks_are_the_best_that_fit() -> None:
    """A kernel of few input and many output directions is given few input channels."""
    draw = generator()
    kernel = torch.einsum("oqyx,iq->oiyx", torch.randn(16, 3, 3, 3, generator=draw), torch.randn(16, 3, generator=draw))
    layer = nn.Conv2d(16, 16, 3, padding=1)
    with torch.no_grad():
        layer.weight.copy_(kernel)
    x = torch.randn(8, 16, 6, 6, generator=draw)
    model, facts = apply(Tucker2(ratio=0.5), nn.Sequential(layer), x)
    assert facts["layers"]["0"]["ranks"] == [3, 16]
    assert close(model, layer, x)


def test_tuckers_ranks_by_variational_bayes() -> None:
    draw = generator()
    kernel = torch.einsum(
        "op,pqyx,iq->oiyx",
        *(torch.randn(*shape, generator=draw) for shape in ((48, 6), (6, 4, 3, 3), (40, 4))),
    )
    layer = nn.Conv2d(40, 48, 3, padding=1)
    with torch.no_grad():
        layer.weight.copy_(kernel + 0.5 * torch.randn(kernel.shape, generator=draw))
    _, facts = apply(Tucker2(vbmf=True), nn.Sequential(layer), torch.randn(4, 40, 6, 6, generator=draw))
    assert facts["layers"]["0"]["ranks"] == [4, 6]


# ------------------------------------------------------------------------------------------------- the file, the steps


def test_the_file_computes_what_torch_does(tmp_path: Path) -> None:
    """One file with a layer of each technique, among them a grouped one."""
    convolutions = [nn.Conv2d(8, 8, 3, padding=1, groups=groups) for groups in (1, 1, 2, 1, 1)]
    original = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(8 * 36, 4))
    x = torch.randn(8, 8, 6, 6, generator=generator())
    steps = [step(layers={f"{i}": 0.3}) for i, step in enumerate(MODULES)] + [LowRank(layers={"6": 2})]
    model, facts = Recipe(tuple(steps)).apply(original, task_of(x), context())
    assert [list(fact["layers"]) for fact in facts] == [["0"], ["1"], ["2"], ["3"], ["4"], ["6"]]
    path, target = tmp_path / "model.onnx", Target("onnxruntime")
    onnxruntime.deploy(model, {"x": x[:2].numpy()}, path, target)
    (found,) = onnxruntime.open_file(path, target)({"x": x.numpy()}).values()
    with torch.no_grad():
        np.testing.assert_allclose(found, model(x).numpy(), rtol=1e-4, atol=1e-5)
    weights = [node for node in onnx.load(path).graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert len(weights) == 2 + 3 + 4 + 2 + 2 + 2


def test_factors_are_layers_to_the_steps_behind() -> None:
    recipe = Recipe((LowRank(ratio=0.3), PruneChannels(ratio=0.3), Quantize()))
    model, facts = recipe.apply(network("residual"), task_for("residual"), context())
    names = set(surgery.weighted_layers(model))
    assert {"blocks.0.conv1.reduce", "blocks.0.conv1.expand"} <= names
    assert "blocks.0.conv1.reduce" in facts[1]["removed"]
    again = Recipe((LowRank(layers={"blocks.0.conv1.reduce": 2}),))
    model, _ = Recipe((LowRank(ratio=0.3),)).apply(network("residual"), task_for("residual"), context())
    twice, facts = again.apply(model, task_for("residual"), context())
    assert set(facts[0]["layers"]) == {"blocks.0.conv1.reduce"}
    assert twice(tensors(inputs_of("residual", 2))["x"]).shape == (2, 4)


# -------------------------------------------------------------------------------------------------- which, which not


class Tied(nn.Module):
    """Two layers with one weight; a layer whose weight is read by itself; one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight
        self.read, self.never = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.b(F.relu(self.a(x))), self.read.weight)


def test_shared_weights_and_layers_that_are_not_called_are_left_whole() -> None:
    x = torch.randn(8, 8, generator=generator())
    model, facts = apply(LowRank(ratio=0.5), Tied(), x)
    assert facts["layers"] == {}
    assert facts["left_whole"] == {
        "a": "its weight is another layer's too",
        "b": "its weight is another layer's too",
        "read": "the model does not call it as a layer",
        "never": "the model does not call it as a layer",
    }
    assert model.a.weight is model.b.weight


def test_a_parametrization_of_the_models_own_is_left_whole_and_one_of_a_step_refused() -> None:
    x = torch.randn(8, 8, generator=generator())
    _, facts = apply(LowRank(ratio=0.5), nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))), x)
    assert facts["left_whole"] == {"0": "its weight is computed by a parametrization of the model's own"}
    with pytest.raises(RecipeError, match="LowRank behind a step that gave 0 another form; put LowRank before it"):
        Recipe((Cluster(bits=1), LowRank(ratio=0.5))).apply(nn.Sequential(nn.Linear(8, 8)), task_of(x), context())


class Reads(nn.Module):
    """Calls a layer and reads its weight too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.fc.weight.square().mean()


def test_a_network_that_reads_the_weight_of_a_replaced_layer_fails_its_trial() -> None:
    with pytest.raises(TrialError, match="does not run: AttributeError"):
        apply(LowRank(ratio=0.5), Reads(), torch.randn(8, 8))


def test_a_layer_that_is_called_twice_is_replaced_in_both_places() -> None:
    x = tensors(inputs_of("twice", 16))["x"]
    model, facts = apply(SpatiallySeparable(layers={"again": 8}), network("twice"), x)
    assert list(facts["layers"]) == ["again"]
    with torch.no_grad():
        assert (model(x) - network("twice")(x)).abs().max() < 0.5 * network("twice")(x).std()


def test_keep_exclude_and_names_before_globs() -> None:
    x = tensors(inputs_of("residual", 16))["x"]
    step = LowRank(layers={"blocks.*": 0.5, "blocks.0.conv1": 2}, exclude=("blocks.2",))
    _, facts = apply(step, network("residual"), x, keep=("blocks.1.*",))
    assert {name: fact["ranks"] for name, fact in facts["layers"].items()} == {
        "blocks.0.conv1": [2],
        "blocks.0.conv2": [3],  # r (72 + 8) is at most half of 72 x 8 up to 3.6
    }


def test_an_onnx_file_is_left_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnxruntime.deploy(network("mlp"), inputs_of("mlp", 2), path, Target("onnxruntime"))
    loaded = models.load(str(path)).module
    task = task_for("mlp")
    _, facts = Recipe((LowRank(ratio=0.5),)).apply(loaded, task, context())
    assert facts[0]["layers"] == {}
    assert set(facts[0]["left_whole"].values()) <= {"layers of an ONNX file cannot be replaced yet"}


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (LowRank(layers={"blokcs.0.conv1": 4}), "got blokcs.0.conv1, wanted blocks.0.conv1"),
        (SpatiallySeparable(layers={"head": 4}), "cannot factorize: got head, wanted"),
        (LowRank(layers={"blocks.*": 4, "*conv1": 2}), "is set twice: got blocks.* and .conv1"),
    ],
)
def test_a_layer_that_is_not_there(step: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        Recipe((step,)).apply(network("residual"), task_for("residual"), context())
    assert "\n" not in str(caught.value)


def test_behind_integers_it_is_refused() -> None:
    with pytest.raises(RecipeError, match="LowRank after Quantize; put LowRank before it"):
        Recipe((Quantize(), LowRank(ratio=0.5))).apply(network("plain"), task_for("plain"), context())


def test_two_ways_to_choose_ranks_are_refused() -> None:
    with pytest.raises(RecipeError, match="a ratio and an energy; set one"):
        LowRank(ratio=0.5, energy=0.9)
    with pytest.raises(RecipeError, match="a ratio and vbmf; set one"):
        Tucker2(ratio=0.5, vbmf=True)


def test_weights_that_are_not_finite() -> None:
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    with pytest.raises(TrialError, match="a weight of 0 is not finite"):
        apply(LowRank(ratio=0.5), nn.Sequential(layer), torch.randn(8, 4))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network(name: str) -> None:
    """A quarter less MACs in every layer, and outputs that still look like the original's."""
    recipe = Recipe((LowRank(layers={"*": 0.25}),))
    model, facts = recipe.apply(network(name), task_for(name), context())
    assert facts[0]["layers"]
    inputs = tensors(inputs_of(name, 16, 5))
    with torch.no_grad():
        for key, y in surgery.call(network(name), inputs).items():
            assert (surgery.call(model, inputs)[key] - y).square().mean() < y.var()


def test_sites() -> None:
    site = Site("", nn.Conv2d(8, 16, (3, 2), groups=2), (10, 10), (8, 9))
    assert (site.groups, site.outputs, site.inputs, site.kernel) == (2, 8, 4, (3, 2))
    assert site.macs == 16 * 4 * 6 * 72
    assert site.weight().shape == (2, 8, 4, 3, 2)
