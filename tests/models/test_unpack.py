"""Compound modules compute the same when their weights lie in linear layers."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.models.unpack import unpack


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("settings", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
def test_recurrent_modules_to_the_bit(kind: type[nn.RNNBase], settings: dict[str, Any]) -> None:
    module = kind(5, 7, **settings)  # type: ignore[arg-type]
    found, x = unpack(copy.deepcopy(module)), drawn(4, 3, 5)
    assert set(surgery.weighted_layers(found)) == {
        name.removeprefix("weight_") for name, _ in module.named_parameters() if "weight" in name
    }
    copies = copy.deepcopy(found), pickle.loads(pickle.dumps(found)), copy.deepcopy(found).double().float()
    for one in (found, *copies):
        assert torch.equal(one(x)[0], module(x)[0])
    with torch.no_grad():
        found.get_submodule("hh_l0").weight.zero_()
    assert not torch.equal(found(x)[0], module(x)[0]), "the children's weights are those that count"
    assert torch.equal(copies[0](x)[0], module(x)[0])


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_to_the_bit(kind: type[nn.RNNCellBase]) -> None:
    module = kind(5, 7)  # type: ignore[call-arg, arg-type]
    found, x = unpack(copy.deepcopy(module)), drawn(3, 5)
    assert set(surgery.weighted_layers(found)) == {"ih", "hh"}
    assert torch.equal(found(x)[0], module(x)[0])


X, Y = drawn(4, 5, 8), drawn(4, 6, 8)
LATER = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)


@pytest.mark.parametrize(
    ("query", "key", "options"),
    [
        (X, X, {}),
        (X, X, {"need_weights": False}),
        (X, Y, {"average_attn_weights": False}),
        (X, X, {"attn_mask": LATER}),
        (
            X,
            X,
            {"attn_mask": torch.zeros(5, 5).masked_fill(LATER, -torch.inf), "is_causal": True, "need_weights": False},
        ),
        (X, Y, {"key_padding_mask": torch.tensor([[False] * 5 + [True]] * 4)}),
        (X, X, {"attn_mask": drawn(8, 5, 5), "key_padding_mask": torch.zeros(4, 5)}),
        (X[0], X[0], {}),
    ],
    ids=["self", "no weights", "cross", "mask", "causal", "padding", "both masks", "one sample"],
)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_attention(query: Tensor, key: Tensor, options: dict[str, Any], batch_first: bool, bias: bool) -> None:
    module = nn.MultiheadAttention(8, 2, batch_first=batch_first, bias=bias).eval()
    found = unpack(copy.deepcopy(module))
    assert set(surgery.weighted_layers(found)) == {"in_proj", "out_proj"}
    if not batch_first and query.dim() == 3:
        same = query is key
        query = query.transpose(0, 1)
        key = query if same else key.transpose(0, 1)
    wanted, weights = module(query, key, key, **options)
    y, found_weights = found(query, key, key, **options)
    torch.testing.assert_close(y, wanted)
    assert (found_weights is None) == (weights is None)
    if weights is not None:
        torch.testing.assert_close(found_weights, weights)


@pytest.mark.parametrize("norm_first", [True, False])
@torch.no_grad()
def test_encoders(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    module = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    found = unpack(copy.deepcopy(module))
    torch.testing.assert_close(found(X), module(X))
    calls = {call.module for call in surgery.trace(found, {"x": X}).calls if call.family == "linear"}
    assert calls == set(surgery.weighted_layers(found)), "nothing goes by a path around them"
    assert len(calls) == 8


def test_what_is_left_as_it_is() -> None:
    class Own(nn.LSTM):
        pass

    for module in (Own(3, 4), nn.LSTM(3, 4, proj_size=2), nn.MultiheadAttention(8, 2, add_bias_kv=True)):
        found = unpack(copy.deepcopy(module))
        assert type(found) is type(module)
        assert [n for n, _ in found.named_parameters()] == [n for n, _ in module.named_parameters()]
