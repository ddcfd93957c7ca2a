"""Weights that torch keeps inside compound modules, moved into linear layers, where every step finds them.

``nn.LSTM``, ``nn.GRU``, ``nn.RNN``, their cells and ``nn.MultiheadAttention`` hold their matrices as parameters of
their own (``weight_ih_l0``, ``in_proj_weight``). Here each becomes the weight of a child ``nn.Linear`` (``ih_l0``,
``in_proj``): it is rounded, clustered and stored like any other. What is computed stays. Recurrent modules still call
torch's own operator, with the children's weights: an exported file has one LSTM node, not an unrolled loop. Attention
calls its children, so that what they read and give can be quantized too.

GPT-2's ``Conv1D`` of transformers, a linear layer whose weight lies the other way round, becomes one that does not.

Left as they are: subclasses, an LSTM with a projection, attention whose keys are not as wide as its queries, or that
appends biases or zeros to its keys.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def unpack(module: nn.Module) -> nn.Module:
    """Unpack every compound module in ``module``, in place; what it computes stays."""
    for part in list(module.modules()):
        if type(part) in _KINDS and not getattr(part, "proj_size", 0):
            _make_children(part, [n.removeprefix("weight_") for n in part._parameters if n.startswith("weight_")])
            for cache in ("_flat_weights", "_flat_weight_refs"):
                part.__dict__.pop(cache, None)
            part.__class__ = _KINDS[type(part)]
        elif type(part) is nn.MultiheadAttention and _is_plain(part):
            part.in_proj = _linear(part.in_proj_weight, part.in_proj_bias)
            part.register_parameter("in_proj_weight", None)
            part.register_parameter("in_proj_bias", None)  # without one, torch's own paths around the children are shut
            part.out_proj.__class__ = nn.Linear  # type: ignore[assignment]
            part.__class__ = _Attention
        elif (type(part).__module__, type(part).__name__) == ("transformers.pytorch_utils", "Conv1D"):
            _turn(part)
        elif isinstance(part, nn.TransformerEncoder):
            part.use_nested_tensor = False
    return module


def _linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """A linear layer of these parameters."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight, made.bias = weight, bias  # type: ignore[assignment]  # torch takes None for no bias
    return made.train(False)


def _turn(part: Any) -> None:
    """Make a linear layer of one whose weight is (in, out)."""
    part.weight = nn.Parameter(part.weight.detach().T.contiguous(), part.weight.requires_grad)
    part.out_features, part.in_features = part.weight.shape
    part.__class__ = nn.Linear


def _make_children(module: nn.Module, names: list[str]) -> None:
    """Move ``weight_NAME`` and ``bias_NAME`` into a child called NAME."""
    for name in names:
        weight, bias = (module._parameters.pop(f"{part}_{name}", None) for part in ("weight", "bias"))
        assert weight is not None
        module.add_module(name, _linear(weight, bias))


# ----------------------------------------------------------------------------------------------------------- recurrent


class _Recurrent(nn.RNNBase):
    """A recurrent module that reads its parameters from its children whenever it runs."""

    _flat_weight_refs = []  # noqa: RUF012 - torch's, and never filled here

    @property
    def _flat_weights(self) -> list[Tensor]:  # type: ignore[override]
        return [getattr(self.get_submodule(n.partition("_")[2]), n.partition("_")[0]) for n in self._flat_weights_names]

    def _init_flat_weights(self) -> None:
        """Nothing is kept beside the children."""

    def flatten_parameters(self) -> None:
        """Nothing lies in one piece."""

    def _update_flat_weights(self) -> None:
        """They are read afresh."""

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, object]) -> None:
        nn.Module.__setstate__(self, state)  # type: ignore[no-untyped-call]


class _LSTM(_Recurrent, nn.LSTM):
    pass


class _GRU(_Recurrent, nn.GRU):
    pass


class _RNN(_Recurrent, nn.RNN):
    pass


class _Cell(nn.Module):
    """A cell that reads its parameters from its children."""

    ih: nn.Linear
    hh: nn.Linear
    weight_ih = property(lambda self: self.ih.weight)
    weight_hh = property(lambda self: self.hh.weight)
    bias_ih = property(lambda self: self.ih.bias)
    bias_hh = property(lambda self: self.hh.bias)


class _LSTMCell(_Cell, nn.LSTMCell):
    pass


class _GRUCell(_Cell, nn.GRUCell):
    pass


class _RNNCell(_Cell, nn.RNNCell):
    pass


_KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.LSTM: _LSTM,
    nn.GRU: _GRU,
    nn.RNN: _RNN,
    nn.LSTMCell: _LSTMCell,
    nn.GRUCell: _GRUCell,
    nn.RNNCell: _RNNCell,
}


# ----------------------------------------------------------------------------------------------------------- attention


def _is_plain(part: nn.MultiheadAttention) -> bool:
    return part._qkv_same_embed_dim and part.bias_k is None and not part.add_zero_attn


class _Attention(nn.MultiheadAttention):
    """Multi-head attention (Vaswani et al. 2017, arXiv 1706.03762, eq. 1) whose projections are its children."""

    in_proj: nn.Linear

    def forward(  # noqa: PLR0917 - torch's own
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As in torch; ``is_causal`` only says what ``attn_mask`` is."""
        single = query.dim() == 2
        turned = not (single or self.batch_first)  # l n e
        q, k, v = (self._heads(x, single, turned) for x in self._projected(query, key, value))  # n h l d
        mask = _mask(key_padding_mask, attn_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # n h l s
            weights = F.softmax(scores if mask is None else scores + mask, -1)
            y = F.dropout(weights, dropout) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        y = self.out_proj(y.transpose(1, 2).flatten(2))  # n l e
        y = y[0] if single else y.transpose(0, 1) if turned else y
        return y, weights[0] if single and weights is not None else weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        if query is key and key is value:
            return self.in_proj(query).chunk(3, -1)  # type: ignore[no-any-return]
        weights = self.in_proj.weight.chunk(3)
        bias: Tensor | None = self.in_proj.bias
        biases = (None, None, None) if bias is None else bias.chunk(3)
        return tuple(F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))

    def _heads(self, x: Tensor, single: bool, turned: bool) -> Tensor:
        """n h l d of n l e, of l n e, or of l e."""
        x = x[None] if single else x.transpose(0, 1) if turned else x
        return x.reshape(*x.shape[:-1], self.num_heads, -1).transpose(1, 2)


def _mask(padding: Tensor | None, attention: Tensor | None, q: Tensor) -> Tensor | None:
    """What is added to the scores (n h l s): of masks that are True, or -inf, where nothing may be read."""
    if padding is not None:
        padding = padding.reshape(len(q), 1, 1, -1)
    if attention is not None and attention.dim() == 3:
        attention = attention.reshape(len(q), -1, *attention.shape[1:])
    parts = [
        torch.zeros_like(m, dtype=q.dtype).masked_fill(m, -torch.inf) if m.dtype == torch.bool else m
        for m in (padding, attention)
        if m is not None
    ]
    return sum(parts[1:], parts[0]) if parts else None
