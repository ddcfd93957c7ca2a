"""What is left learns what the whole network gave: exactly where it can, and to some use elsewhere."""

from __future__ import annotations

import copy
import functools
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from laconic import data, surgery
from laconic.core import Recipe, Step, Task
from laconic.errors import DataError, RecipeError, TrialError
from laconic.models.zoo.digits_cnn import DigitsCNN
from laconic.steps.prune import channels
from laconic.steps.prune.channels import ChannelCriterion, PruneChannels
from laconic.steps.prune.criteria import CRITERIA
from laconic.steps.prune.heads import HeadCriterion
from laconic.steps.prune.weights import PruneWeights, WeightCriterion
from laconic.steps.train.fine_tune import FineTune
from tests.networks import Rows, context, inputs_of, network, task_for, tensors

DATA_FREE = {"l1", "l2", "lamp", "bn_scale", "geometric_median", "random"}


def apply(model: nn.Module, *steps: Step, task: Task, **given: Any) -> tuple[nn.Module, Any]:
    told = {"reference": lambda inputs: surgery.call(model, inputs), **given}
    return Recipe(steps).apply(model, task, context(**told))


def outputs(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return next(iter(surgery.call(model.eval(), inputs).values()))


def error(model: nn.Module, wanted: Tensor, inputs: dict[str, Tensor]) -> float:
    return float((outputs(model, inputs) - wanted).square().mean() / wanted.square().mean())


@torch.no_grad()
def doubled(model: nn.Module, *modules: str) -> nn.Module:
    """Channel 2 of these modules computes what channel 5 does."""
    for name in modules:
        module = model.get_submodule(name)
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.dim():
                tensor[2] = tensor[5]
    return model


def removing(monkeypatch: pytest.MonkeyPatch, channel: int) -> None:
    """Let every criterion choose this channel first."""

    def scores(model: nn.Module, graph: Any, groups: Any, *rest: Any) -> dict[str, Tensor]:
        return {group.name: (torch.arange(group.channels) != channel).float() for group in groups}

    monkeypatch.setattr(channels, "channel_scores", scores)


@pytest.mark.parametrize(
    ("name", "modules", "group"),
    [
        ("plain", ("conv1", "bn1"), "conv1"),  # through batch norm, relu and pooling, to a convolution
        ("plain", ("conv2", "bn2"), "conv2"),  # to a linear layer that reads each channel at four places
        ("plain", ("fc1",), "fc1"),
        ("residual", ("blocks.0.conv1", "blocks.0.bn1"), "blocks.0.conv1"),
        ("depthwise", ("conv", "conv_bn", "depthwise", "depthwise_bn"), "conv"),  # through a depthwise convolution
    ],
)
def test_a_channel_that_another_repeats_can_be_made_up_for(
    name: str, modules: tuple[str, ...], group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    removing(monkeypatch, 2)
    model, task = doubled(network(name), *modules), task_for(name, n=128)
    count = len(surgery.weighted_layers(model)[group].weight)
    inputs = tensors(inputs_of(name, 32, seed=5))
    wanted = outputs(model, inputs)
    settings: dict[str, Any] = {"layers": {group: 1 / count}}
    without, (facts,) = apply(model, PruneChannels(**settings), task=task)
    assert facts["removed"] == {group: [2]}
    recovered, _ = apply(model, PruneChannels(**settings, recovery="least_squares"), task=task)
    lost = error(without, wanted, inputs)
    assert lost > 1e-6
    assert error(recovered, wanted, inputs) < 0.02 * lost


@pytest.mark.parametrize("recovery", ["batch_norm", "least_squares"])
def test_where_nothing_is_missing_nothing_changes(recovery: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    removing(monkeypatch, 3)
    model = network("residual")
    with torch.no_grad():
        for name in ("blocks.0.conv1", "blocks.0.bn1"):
            for parameter in model.get_submodule(name).parameters():
                parameter[3] = 0
    settings: dict[str, Any] = {"layers": {"blocks.0.conv1": 1 / 8}}
    whole, _ = apply(model, PruneChannels(**settings), task=task_for("residual"))
    changed, (facts,) = apply(model, PruneChannels(**settings, recovery=recovery), task=task_for("residual"))
    assert facts["removed"] == {"blocks.0.conv1": [3]}
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(changed.state_dict()[key], value, rtol=1e-3, atol=1e-4)


def test_batch_norms_move_with_what_they_read() -> None:
    """A convolution and a batch norm by hand: the mean moves by what its input's mean moved by, the variance scales."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 3))
    model[2].running_mean.uniform_()  # type: ignore[union-attr, operator]
    task = task_for("plain", n=16)
    x = torch.as_tensor(task.train.read(range(16)).inputs["x"])
    settings: dict[str, Any] = {"layers": {"0": 0.5}}
    plain, _ = apply(model, PruneChannels(**settings), task=task)
    changed, _ = apply(model, PruneChannels(**settings, recovery="batch_norm"), task=task)
    before, after = model[:2](x), plain[:2](x)  # type: ignore[index]
    norm, original = changed.get_submodule("2"), model.get_submodule("2")
    torch.testing.assert_close(
        norm.running_mean, original.running_mean + after.mean((0, 2, 3)) - before.mean((0, 2, 3))
    )
    ratio = after.var((0, 2, 3), unbiased=False) / before.var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(norm.running_var, original.running_var * ratio)


def test_few_samples_change_weights_little() -> None:
    """With two samples least squares could fit anything; the weights stay near to what they were."""
    model, inputs = network("plain"), tensors(inputs_of("plain", 64, seed=5))
    wanted = outputs(model, inputs)
    few = task_for("plain", n=2)
    without, _ = apply(model, PruneChannels(0.25), task=few)
    fitted, _ = apply(model, PruneChannels(0.25, recovery="least_squares"), task=few)
    assert error(fitted, wanted, inputs) < error(without, wanted, inputs)


def test_kept_layers_are_not_fitted() -> None:
    changed, (facts,) = apply(
        network("plain"),
        PruneChannels(0.25, recovery="least_squares"),
        task=task_for("plain"),
        keep=("fc2",),
    )
    assert list(facts["errors"]) == ["conv1", "conv2", "fc1"]
    torch.testing.assert_close(changed.get_submodule("fc2").bias, network("plain").get_submodule("fc2").bias)


def test_shared_scores_take_from_where_there_is_least_to_lose() -> None:
    model = network("plain")
    with torch.no_grad():
        model.get_submodule("bn2").weight.mul_(0.01)
    changed, (facts,) = apply(model, PruneChannels(0.4, criterion="bn_scale", scope="global"), task=task_for("plain"))
    assert list(facts["removed"]) == ["conv2"]
    assert len(facts["removed"]["conv2"]) == 8  # of 20 channels
    assert "fc1" in facts["left_whole"]
    assert len(surgery.weighted_layers(changed)["conv2"].weight) == 4


def test_shared_weights_and_coupled_layers_are_said() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    model[2].weight = model[0].weight
    task = task_for("plain", n=8)
    object.__setattr__(task, "train", Rows({"x": np.random.default_rng(0).standard_normal((8, 6)).astype("f")}, None))
    changed, (facts,) = apply(copy.deepcopy(model), PruneChannels(0.5), task=task)
    shapes = {name: tuple(layer.weight.shape) for name, layer in surgery.weighted_layers(changed).items()}
    assert shapes["0"] == shapes["2"] == (6, 6)
    assert facts["left_whole"]["0"] == "the weight of 0 is another layer's too"  # the group of both
    both = {"stem.0": 0.5, "blocks.0.conv2": 0.25}
    with pytest.raises(RecipeError, match=r"got blocks\.0\.conv2, .*; its channels go with those of stem\.0"):
        apply(network("residual"), PruneChannels(layers=both), task=task_for("residual"))


@pytest.mark.parametrize("criterion", sorted(set(get_args(ChannelCriterion)) - DATA_FREE))
def test_a_criterion_that_needs_data_without_data(criterion: Any) -> None:
    empty = task_for("plain", n=2)
    object.__setattr__(empty, "calibration", 0)
    with pytest.raises(DataError, match="no calibration samples"):
        apply(network("plain"), PruneChannels(0.5, criterion=criterion), task=empty)


def test_a_criterion_that_says_nothing_of_a_network_is_refused() -> None:
    with pytest.raises(RecipeError, match="PruneChannels by bn_scale: got no batch norm"):
        apply(network("mlp"), PruneChannels(0.5, criterion="bn_scale"), task=task_for("mlp"))


def test_values_that_are_not_finite() -> None:
    model = network("plain")
    with torch.no_grad():
        model.get_submodule("conv1").weight[0] = torch.inf
    with pytest.raises(TrialError, match="values of output that are not finite"):
        apply(model, PruneChannels(0.25, recovery="least_squares"), task=task_for("plain"))


def test_steps_offer_the_criteria_that_make_sense_for_them() -> None:
    channels_alone = {name for name, criterion in CRITERIA.items() if criterion.channels_alone}
    assert set(get_args(ChannelCriterion)) == set(CRITERIA)
    assert set(get_args(WeightCriterion)) == set(CRITERIA) - channels_alone
    assert set(get_args(HeadCriterion)) == set(CRITERIA) - channels_alone - {"lamp"}


# ------------------------------------------------------------------------------------------------------ a trained net


@functools.cache
def digits() -> tuple[nn.Module, Task]:
    """A network of width 8 that knows its digits, and the task."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x = (found.images[:, None] / 16).astype(np.float32)
    task = data.from_arrays(x, found.target)
    torch.manual_seed(0)
    model, _ = apply(DigitsCNN(8), FineTune(epochs=10, lr=1e-2, distill=0.0), task=task)
    assert score(model, task) > 0.95
    return model, task


def score(model: nn.Module, task: Task) -> float:
    batch = task.search.read(range(len(task.search)))
    said = outputs(model, {"x": torch.as_tensor(next(iter(batch.inputs.values())))}).argmax(1)
    assert batch.targets is not None
    return float((said == torch.as_tensor(batch.targets)).float().mean())


def mean_score(make: Any) -> float:
    """Over seeds: of the samples at whose places layers are fitted, and of what random takes."""
    model, task = digits()
    return float(np.mean([score(apply(model, make, task=task, seed=seed)[0], task) for seed in range(3)]))


def test_channels_second_order_beats_magnitude_and_recovery_beats_both() -> None:
    magnitude, second, control = (mean_score(PruneChannels(0.15, criterion=c)) for c in ("l2", "obs", "random"))
    assert second > magnitude
    assert second > control
    assert mean_score(PruneChannels(0.15, criterion="obs", recovery="least_squares")) > second + 0.2


def test_weights_second_order_and_recovery_beat_magnitude_and_random_is_worst() -> None:
    control, magnitude, second = (mean_score(PruneWeights(0.3, criterion=c)) for c in ("random", "l2", "obs"))
    assert control < magnitude < second
    updated = [mean_score(PruneWeights(0.3, criterion=c, update="obs")) for c in ("random", "l2", "obs")]
    assert second + 0.3 < updated[0] < updated[1] < updated[2]
