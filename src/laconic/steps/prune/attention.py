"""Attention as pruning sees it: which layers give a head its queries, keys and values, and which reads it.

Known are modules that hold a fused ``qkv`` and a ``proj`` (timm, the zoo), ``q_proj``, ``k_proj``, ``v_proj`` and an
``o_proj`` or ``out_proj`` (transformers: Llama, CLIP, ViT, ...; timm), ``query``, ``key``, ``value`` with the ``dense``
of the module beside it (transformers: BERT), and torch's own ``nn.MultiheadAttention``, in whose place comes a module
that computes the same and can hold fewer heads. Where several query heads share a key and a value (Ainslie et al.
2023, arXiv 2305.13245), what goes together is a key with all its queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SEPARATE = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))
_OUT = ("proj", "o_proj", "out_proj")
_COUNTS = ("num_heads", "heads", "num_attention_heads", "n_heads", "num_kv_heads", "num_key_value_heads")
_WIDTHS = ("attn_dim", "all_head_size", "kv_dim")


@dataclass(frozen=True)
class Attention:
    """``groups`` of heads that the layer ``out`` reads side by side; ``giving``: the layers that give them, with how
    often all groups are in their output (3 times in that of a fused one)."""

    name: str
    groups: int
    out: str
    giving: dict[str, int]

    def rows(self, layer: nn.Linear, name: str, groups: list[int]) -> Tensor:
        """The outputs of a giving layer that belong to these groups."""
        parts = self.giving[name]
        width = layer.out_features // (parts * self.groups)
        index = torch.arange(layer.out_features).reshape(parts, self.groups, width)
        return index[:, groups].flatten()

    def columns(self, layer: nn.Linear, groups: list[int]) -> Tensor:
        """The inputs of ``out`` that belong to these groups."""
        return torch.arange(layer.in_features).reshape(self.groups, -1)[groups].flatten()


def find(model: nn.Module) -> dict[str, Attention]:
    """The attention modules of ``model`` by name, in the order of definition."""
    modules = dict(model.named_modules())
    found = {}
    for name, module in modules.items():
        out = _out_of(name, module, modules)
        heads = next((getattr(module, a) for a in _COUNTS if type(getattr(module, a, None)) is int), None)
        fused = [part for part in ("qkv",) if isinstance(getattr(module, part, None), nn.Linear)]
        separate = next((parts for parts in _SEPARATE if all(_is_linear(module, part) for part in parts)), None)
        if out is None or not (fused or separate):
            continue
        giving = {f"{name}.{part}".lstrip("."): 3 if fused else 1 for part in fused or separate or ()}
        width = getattr(module, "head_dim", None) or getattr(module, "attention_head_size", None)
        key = modules[list(giving)[-1]]
        assert isinstance(key, nn.Linear)
        groups = key.out_features // (width * (3 if fused else 1)) if type(width) is int else heads
        reader = modules[out]
        assert isinstance(reader, nn.Linear)
        if groups and reader.in_features % groups == 0:
            found[name] = Attention(name, groups, out, giving)
    return found


def _is_linear(module: nn.Module, part: str) -> bool:
    return isinstance(getattr(module, part, None), nn.Linear)


def _out_of(name: str, module: nn.Module, modules: dict[str, nn.Module]) -> str | None:
    own = next((part for part in _OUT if _is_linear(module, part)), None)
    if own is not None:
        return f"{name}.{own}".lstrip(".")
    beside = f"{name.rpartition('.')[0]}.output.dense".lstrip(".")
    return beside if isinstance(modules.get(beside), nn.Linear) else None


def shrink(model: nn.Module, attention: Attention, kept: list[int]) -> None:
    """Keep these groups of heads of one attention module, in place."""
    module = model.get_submodule(attention.name)
    share = (len(kept), attention.groups)
    for name in attention.giving:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        rows = attention.rows(layer, name, kept)
        layer.weight = nn.Parameter(layer.weight.detach()[rows].clone())
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias.detach()[rows].clone())
        layer.out_features = len(rows)
    out = model.get_submodule(attention.out)
    assert isinstance(out, nn.Linear)
    columns = attention.columns(out, kept)
    out.weight = nn.Parameter(out.weight.detach()[:, columns].clone())
    out.in_features = len(columns)
    for stated in (*_COUNTS, *_WIDTHS):
        value = getattr(module, stated, None)
        if type(value) is int:
            setattr(module, stated, value * share[0] // share[1])


class OpenAttention(nn.Module):
    """``nn.MultiheadAttention`` of one width, of plain layers: (n, tokens, width) or, without ``batch_first``, (tokens,
    n, width). Queries, keys and values are one tensor; no weights are given back."""

    def __init__(self, module: nn.MultiheadAttention) -> None:
        super().__init__()
        width, bias = module.embed_dim, module.in_proj_bias is not None
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)
        self.num_heads, self.head_dim, self.batch_first = module.num_heads, module.head_dim, module.batch_first
        with torch.no_grad():
            self.qkv.weight.copy_(module.in_proj_weight)
            self.proj.weight.copy_(module.out_proj.weight)
            if bias:
                self.qkv.bias.copy_(module.in_proj_bias)
                self.proj.bias.copy_(module.out_proj.bias)

    @staticmethod
    def takes(module: nn.Module) -> bool:
        """Whether this module can stand in for ``module``."""
        return (
            isinstance(module, nn.MultiheadAttention)
            and module._qkv_same_embed_dim
            and module.bias_k is None
            and not module.add_zero_attn
        )

    def forward(  # noqa: PLR0917 - as nn.MultiheadAttention is called
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Any]:
        if query is not key or key is not value or key_padding_mask is not None or attn_mask is not None:
            raise ValueError("attention to another tensor, or with a mask")
        x = query if self.batch_first else query.transpose(0, 1)
        heads = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)  # n heads tokens width
        y = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        y = self.proj(y.transpose(1, 2).flatten(2))
        return (y if self.batch_first else y.transpose(0, 1)), None
