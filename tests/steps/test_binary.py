"""Binary weights and activations: the papers' formulas, what relus become, training, and the deployed file."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Recipe, Target
from laconic.errors import RecipeError
from laconic.models import load
from laconic.runtime import onnxruntime
from laconic.runtime.difference import relative_error
from laconic.steps.quantize.binary import Binary, BinaryInput, BinaryWeight, RPReLU
from laconic.steps.quantize.post_training import Quantize
from tests.networks import context, inputs_of, network, task_for, tensors

START = Binary(epochs=0, activations=True)


def outputs(model: nn.Module, name: str, seed: int = 5) -> Tensor:
    with torch.no_grad():
        return surgery.call(model.eval(), tensors(inputs_of(name, 16, seed)))["output"]


def test_weights_by_hand() -> None:
    """sign(w) mean|w| per output channel; the gradient passes where |w| <= 1."""
    form = BinaryWeight(nn.Parameter(torch.tensor([[0.5, -0.25, 0.0], [2.0, -1.5, 1.0]])))
    assert form().tolist() == [[0.25, -0.25, 0.25], [1.5, -1.5, 1.5]]
    assert form.codes().tolist() == [[1, 0, 1], [1, 0, 1]]
    assert form.codebook().tolist() == [[-0.25, 0.25], [-1.5, 1.5]]
    form().backward(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))  # type: ignore[no-untyped-call]
    assert form.latent.grad is not None
    assert form.latent.grad.tolist() == [[1.0, 2.0, 3.0], [0.0, 0.0, 6.0]]


def test_alpha_is_the_best_scale() -> None:
    """No other scale of the signs is nearer to the weights of a channel (XNOR-Net, eq. 4-6)."""
    weight = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    found = (weight - BinaryWeight(nn.Parameter(weight))()).square().sum((1, 2, 3))
    for alpha in torch.linspace(0.3, 1.5, 121):
        other = (weight - alpha * weight.sign()).square().sum((1, 2, 3))
        assert bool((found <= other + 1e-5).all())


def test_inputs_by_hand() -> None:
    """g sign(x - a_c), the slope 2 - 2|u| at u = (x - a) / g, 0 beyond |u| = 1."""
    reader = BinaryInput(nn.Linear(2, 1))
    with torch.no_grad():
        reader.threshold.copy_(torch.tensor([1.0, -1.0]))
        reader.gain.fill_(2.0)
    x = torch.tensor([[1.5, -4.0], [1.0, 0.0]], requires_grad=True)  # u = 0.25, -1.5; 0, 0.5
    y = reader(x)
    assert y.tolist() == [[2.0, -2.0], [2.0, 2.0]]
    y.backward(torch.tensor([[1.0, 10.0], [100.0, 1000.0]]))
    assert x.grad is not None
    assert reader.threshold.grad is not None
    assert reader.gain.grad is not None
    assert x.grad.tolist() == [[1.5, 0.0], [200.0, 1000.0]]
    assert reader.threshold.grad.tolist() == [-201.5, -1000.0]
    assert reader.gain.grad.item() == 1 - 10 + 100 + 1000


def test_thresholds_start_in_the_middle() -> None:
    model, _ = Recipe((START,)).apply(network("residual"), task_for("residual"), context())
    assert len(model.blocks[0].conv1.binary_input.threshold) == 8
    seen: list[Tensor] = []
    reader = model.blocks[0].conv1.binary_input
    reader.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(torch.as_tensor(task_for("residual").calibration_batch().inputs["x"]))
    np.testing.assert_allclose(reader.threshold.detach(), seen[0].mean((0, 2, 3)), rtol=1e-5)
    distance = (seen[0] - seen[0].mean((0, 2, 3), keepdim=True)).square().mean().sqrt()
    assert reader.gain.item() == pytest.approx(distance.item(), rel=1e-5)


def test_every_layer_in_between_reads_two_values() -> None:
    step = Binary(activations=True, epochs=1, lr=5e-3, batch=32)
    model, (facts,) = Recipe((step,)).apply(network("residual"), task_for("residual"), context())
    read: dict[str, int] = {}

    def handler(key: str, module: str, func: object, args: tuple[Tensor, ...], kwargs: object) -> object:
        if func is F.conv2d or func is torch.conv2d:
            read[module] = len(args[0].unique())
        return func(*args, **kwargs)  # type: ignore[operator]

    with torch.no_grad(), surgery.watched(model, handler):
        model(torch.as_tensor(inputs_of("residual", 8)["x"]))
    assert {name for name, values in read.items() if values == 2} == set(facts["layers"])
    assert read["stem.0"] > 2


def test_rprelu_by_hand() -> None:
    relu = RPReLU(2, axis=1)
    x = torch.tensor([[[2.0, -1.0], [2.0, -1.0]]])
    assert torch.equal(relu(x), F.leaky_relu(x, 0.25)), "it starts as PReLU"
    with torch.no_grad():
        relu.before.copy_(torch.tensor([1.0, 0.0]))
        relu.after.copy_(torch.tensor([10.0, 0.0]))
        relu.slope.copy_(torch.tensor([0.5, 2.0]))
    assert relu(x).tolist() == [[[11.0, 9.0], [2.0, -2.0]]]


def test_which_relus_change() -> None:
    """Those behind binary layers, through batch norm and addition; each by the module that calls it."""
    found = {}
    for name in ("residual", "plain", "twice", "mlp"):
        _, (facts,) = Recipe((START,)).apply(network(name), task_for(name), context())
        found[name] = facts["relus"]
    assert found["residual"] == {
        "blocks.0.relu": {"0": [8, 1]},
        "blocks.1.relu": {"0": [16, 1]},
        "blocks.2.relu": {"0": [16, 1]},
    }
    assert found["plain"] == {"": {"1": [12, 1], "2": [16, -1]}}, "not the one behind the first layer"
    assert found["twice"] == {"": {"1": [8, 1], "2": [8, 1]}}
    assert found["mlp"] == {"4": {"0": [16, -1]}}


class Reused(nn.Module):
    """One relu behind two binary layers of different width."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in ((3, 4), (4, 6), (6, 8), (8, 4)))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.layers[1](self.layers[0](x)))
        return self.layers[3](self.relu(self.layers[2](x))).mean((2, 3))


def test_a_relu_of_several_widths_stays() -> None:
    model, (facts,) = Recipe((START,)).apply(Reused(), task_for("plain"), context())
    assert facts["layers"] == ["layers.1", "layers.2"]
    assert facts["relus"] == {}
    assert torch.isfinite(outputs(model, "plain")).all()


def test_before_training_only_signs_and_scales_differ() -> None:
    """Against the same written out: the float network with sign(w) alpha and g sign(x - a) in the hidden layer, and
    PReLU behind it."""
    model, _ = Recipe((START,)).apply(network("mlp"), task_for("mlp"), context())
    plain = copy.deepcopy(network("mlp"))
    x = torch.as_tensor(inputs_of("mlp", 16, 5)["x"])
    calibration = torch.as_tensor(task_for("mlp").calibration_batch().inputs["x"])
    with torch.no_grad():
        seen = plain[:3](calibration)
        threshold = seen.mean(0)
        gain = (seen - threshold).square().mean().sqrt()
        weight = plain[3].weight.sign() * plain[3].weight.abs().mean(1, keepdim=True)
        hidden = torch.where(plain[:3](x) >= threshold, gain, -gain)
        wanted = plain[5:](F.leaky_relu(hidden @ weight.T, 0.25))
    torch.testing.assert_close(outputs(model, "mlp"), wanted)


@pytest.mark.parametrize("activations", [False, True])
def test_it_learns_and_the_file_agrees(activations: bool, tmp_path: Path) -> None:
    task = task_for("residual", 128)
    step = Binary(activations=activations, epochs=16, lr=2e-2, batch=32, distill=0.0)
    model, (facts,) = Recipe((step,)).apply(network("residual"), task, context())
    assert facts["last_loss"] < 0.5 * facts["first_loss"]
    assert (facts["stored_bits"], facts["computed"]) == (1, "float32")
    for name in facts["layers"]:
        layer = model.get_submodule(name)
        (form,) = layer.parametrizations["weight"]
        channels = torch.arange(len(layer.weight)).reshape(-1, 1, 1, 1)
        assert torch.equal(layer.weight, form.codebook()[channels, form.codes().long()])
    inputs, target = inputs_of("residual", 8, seed=3), Target("onnxruntime")
    onnxruntime.deploy(model, inputs, tmp_path / "m.onnx", target)
    found = onnxruntime.open_file(tmp_path / "m.onnx", target)(inputs)["output"]
    assert relative_error(found, surgery.call(model, tensors(inputs))["output"].detach().numpy()) < 1e-4


def test_integer_activations_leave_the_relus_as_they_are() -> None:
    """Quantize behind it wraps the same model again; in "plain" it is the model itself that calls the relus."""
    task = task_for("plain")
    step = Binary(activations=True, epochs=1, lr=5e-3, batch=32)
    binary, _ = Recipe((step,)).apply(network("plain"), task, context())
    both, _ = Recipe((Quantize(),)).apply(binary, task, context())
    assert relative_error(outputs(both, "plain").numpy(), outputs(binary, "plain").numpy()) < 0.1


def test_what_it_refuses(tmp_path: Path) -> None:
    task = task_for("plain")
    with pytest.raises(RecipeError, match="Binary needs training data"):
        Recipe((Binary(),)).apply(network("plain"), task_for("plain", trainable=False), context())
    with pytest.raises(RecipeError, match="Binary with activations"):
        Recipe((Quantize(exclude=("conv2", "fc1")), START)).apply(network("plain"), task, context())
    target = Target("onnxruntime")
    onnxruntime.deploy(network("plain"), inputs_of("plain", 2), tmp_path / "m.onnx", target)
    with pytest.raises(RecipeError, match="Binary with activations"):
        Recipe((START,)).apply(load(str(tmp_path / "m.onnx")).module, task, context())
