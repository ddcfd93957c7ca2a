"""Attention as pruning sees it: which layers give a head its queries, keys and values, and which reads it.

Known are modules that hold a fused ``qkv`` and a ``proj`` (timm, the zoo) or ``in_proj`` and ``out_proj`` (torch's own
attention, whose projections are linear layers once a model is loaded), ``q_proj``, ``k_proj``, ``v_proj`` and an
``o_proj`` or ``out_proj`` (transformers: Llama, CLIP, ViT, ...; timm), and ``query``, ``key``, ``value`` with the
``dense`` of the module beside it (transformers: BERT). Where several query heads share a key and a value (Ainslie et
al. 2023, arXiv 2305.13245), what goes together is a key with all its queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_FUSED = ("qkv", "in_proj")
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
        fused = [part for part in _FUSED if _is_linear(module, part)]
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
