"""Counts against numbers worked out by hand or printed in a paper."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic.models.zoo import ZOO
from laconic.profile import profile


class Apply(nn.Module):
    """A module that applies a function."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "convolution": (nn.Conv2d(6, 8, 3, stride=2, groups=2), (6, 9, 9), 8 * 4 * 4 * 3 * 9),
    "convolution of one dimension": (nn.Conv1d(3, 5, 4), (3, 10), 5 * 7 * 3 * 4),
    "convolution of three": (nn.Conv3d(2, 3, 2), (2, 4, 4, 4), 3 * 27 * 2 * 8),
    "transposed convolution": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 5, 5), 4 * 25 * 3 * 9),
    "linear": (nn.Linear(7, 3), (7,), 21),
    "linear without bias, of a sequence": (nn.Linear(7, 3, bias=False), (5, 7), 105),
    "product": (Apply(lambda x: x @ x.mT), (4, 3), 4 * 4 * 3),
    "attention": (Apply(lambda x: F.scaled_dot_product_attention(x, x, x)), (2, 5, 8), 2 * 5 * 5 * (8 + 8)),
    "attention layer": (
        nn.TransformerEncoderLayer(16, 4, 32, batch_first=True),
        (3, 16),
        3 * 16 * 128 + 2 * 3 * 3 * 16,
    ),
    "lstm": (nn.LSTM(8, 16, batch_first=True, bidirectional=True), (5, 8), 2 * 5 * 4 * 16 * (8 + 16)),
    "gru": (nn.GRU(8, 16, batch_first=True), (5, 8), 5 * 3 * 16 * (8 + 16)),
    "norm, pool, activation": (
        nn.Sequential(
            nn.BatchNorm2d(3), nn.Hardswish(inplace=True), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ),
        (3, 8, 8),
        0,
    ),
}
"""Module, shape of a sample, MACs."""


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str) -> None:
    module, shape, macs = LAYERS[name]
    found = profile(module, torch.randn(3, *shape))
    assert found.macs == macs
    assert found.unsupported == {}


def test_embedding_makes_none() -> None:
    assert profile(nn.Embedding(10, 4), torch.zeros(2, 3, dtype=torch.long)).macs == 0


NETWORKS = {
    "lenet-300-100": 784 * 300 + 300 * 100 + 1000,
    "lenet-5-caffe": 2_293_000,
    "cifar-resnet-20": 40_551_040,
    "mobilenet-v1-1.0-224": 568_740_352,  # 569 M in the paper
    "mobilenet-v1-0.75-224": 325_400_448,  # 325 M in the paper
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str) -> None:
    entry = ZOO[name]
    model = entry.build()
    found = profile(model, torch.zeros(1, *entry.input_shape))
    assert found.macs == NETWORKS[name]
    assert found.unsupported == {}
    assert found.params == sum(p.numel() for p in model.parameters())


def test_resnet18() -> None:
    from torchvision.models import resnet18

    assert profile(resnet18(weights=None), torch.zeros(1, 3, 224, 224)).macs == 1_814_073_344  # 1.814 G


def test_layers_of_lenet() -> None:
    entry = ZOO["lenet-5-caffe"]
    found = profile(entry.build(), torch.zeros(2, *entry.input_shape))
    assert [(row.name, row.type, row.params, row.macs) for row in found.layers] == [
        ("", "LeNet5Caffe", 0, 0),
        ("conv1", "Conv2d", 520, 288_000),
        ("conv2", "Conv2d", 25_050, 1_600_000),
        ("fc1", "Linear", 400_500, 400_000),
        ("fc2", "Linear", 5_010, 5_000),
    ]
    pooled, relu = 20 * 144 + 50 * 16, 500
    written = [pooled + relu, 20 * 576, 50 * 64, 500, 10]
    assert [row.activations_bytes for row in found.layers] == [4 * n for n in written]
    assert found.activations_bytes == 4 * sum(written)
    assert found.size_bytes == 4 * 431_080


@pytest.mark.parametrize("inplace", [False, True])
def test_bytes_do_not_depend_on_writing_in_place(inplace: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace), nn.Flatten(), nn.Unflatten(1, (2, 3)))
    assert profile(model, torch.zeros(2, 4)).activations_bytes == 4 * (6 + 6)


def test_what_is_unknown_is_listed() -> None:
    found = profile(nn.Sequential(Apply(torch.fft.fft2), Apply(torch.linalg.det)), torch.randn(2, 3, 3))
    assert set(found.unsupported) == {"aten::_fft_c2c", "aten::_linalg_det"}
    assert all(count == 1 for count in found.unsupported.values())
    assert found.traffic_bytes > 0  # what they read and write is known


def test_shared_module_counts_twice_and_its_parameters_once() -> None:
    shared = nn.Linear(4, 4, bias=False)
    found = profile(nn.Sequential(shared, shared), torch.zeros(1, 4))
    assert (found.params, found.macs, found.size_bytes) == (16, 32, 64)


def test_parametrization_belongs_to_its_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    parametrize.register_parametrization(model[0], "weight", Apply(lambda w: w * 2))
    found = profile(model, torch.zeros(1, 4))
    assert [(row.name, row.params, row.macs) for row in found.layers] == [("0", 15, 12)]


def test_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 2))
    model[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    profile(model, torch.randn(4, 3))
    assert [module.training for module in model] == [False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_failing_model_is_left_as_it_was() -> None:
    def fail(x: Tensor) -> Tensor:
        raise ZeroDivisionError

    model = nn.Sequential(Apply(fail)).train()
    with pytest.raises(ZeroDivisionError):
        profile(model, torch.zeros(1))
    assert model.training
    assert not model[0]._forward_hooks
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


def test_named_inputs() -> None:
    model = Apply(lambda a, b: a @ b)
    model.forward = lambda a, b: a @ b.mT  # type: ignore[method-assign]
    found = profile(model, {"b": torch.zeros(2, 3, 4), "a": torch.zeros(2, 5, 4)})
    assert found.macs == 5 * 3 * 4
    assert profile(nn.Linear(4, 3), {"any": torch.zeros(2, 4)}).macs == 12


def test_json() -> None:
    found = profile(nn.Linear(4, 3), torch.zeros(1, 4)).to_json()
    assert {"params", "size_bytes", "macs", "flops", "activations_bytes", "unsupported", "layers"} <= set(found)
    (row,) = json.loads(json.dumps(found))["layers"]
    assert (row["name"], row["type"], row["params"], row["macs"]) == ("", "Linear", 15, 12)
    for name, value in row.items():
        if name in found and name != "unsupported":
            assert found[name] == value
