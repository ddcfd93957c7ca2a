"""Attention as pruning sees it: which layers give a head its queries, keys and values, and which reads it.

Known are modules that hold one layer or several for queries, keys and values and one for what comes out, by the names
that timm, transformers, torchvision and torch itself use (torch's projections are linear layers once a model is loaded,
and so are GPT-2's). Where several query heads share a key and a value (Ainslie et al. 2023, arXiv 2305.13245), what
goes together is a key with all its queries. What else the module holds per head (a table of position biases, a
temperature) goes with its head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from laconic.steps.prune.labels import Axis
from laconic.steps.prune.resize import Undo, resized

_FUSED = ("qkv", "in_proj", "c_attn", "to_qkv", "query_key_value")
_SEPARATE = (
    *(("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q", "k", "v"), ("to_q", "to_k", "to_v")),
    *(("q", "kv"), ("to_q", "to_kv")),
)
_OUT = ("proj", "o_proj", "out_proj", "c_proj", "merge", "to_out")
_COUNTS = ("num_heads", "heads", "num_attention_heads", "n_heads", "num_kv_heads", "num_key_value_heads")
_WIDTHS = ("attn_dim", "all_head_size", "kv_dim", "split_size")


@dataclass(frozen=True)
class Attention:
    """``groups`` of heads that the layer ``out`` reads side by side; ``giving``: the layers that give them, with how
    often all groups are in their output (3 times in that of a fused one)."""

    name: str
    groups: int
    out: str
    giving: dict[str, int]

    def rows(self, layer: nn.Linear, name: str) -> np.ndarray[Any, Any]:
        """The group that each output of a giving layer belongs to."""
        parts = self.giving[name]
        return np.tile(np.repeat(np.arange(self.groups), layer.out_features // (parts * self.groups)), parts)

    def columns(self, layer: nn.Linear) -> np.ndarray[Any, Any]:
        """The group that each input of ``out`` belongs to."""
        return np.repeat(np.arange(self.groups), layer.in_features // self.groups)


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
        parts = fused[:1] or list(separate or ())
        giving = {f"{name}.{part}".lstrip("."): 3 if fused else 2 if part.endswith("kv") else 1 for part in parts}
        width = getattr(module, "head_dim", None) or getattr(module, "attention_head_size", None)
        key = modules[list(giving)[-1]]
        assert isinstance(key, nn.Linear)
        groups = key.out_features // (width * list(giving.values())[-1]) if type(width) is int else heads
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


def _axes(model: nn.Module, attention: Attention) -> dict[tuple[str, int], Axis]:
    """Which group each place of the module's parameters and buffers belongs to."""
    axes: dict[tuple[str, int], Axis] = {}
    for name in attention.giving:
        rows = attention.rows(linear(model, name), name)
        axes |= {(f"{name}.weight", 0): Axis("gives", rows), (f"{name}.bias", 0): Axis("passes", rows)}
    columns = attention.columns(linear(model, attention.out))
    axes[f"{attention.out}.weight", 1] = Axis("reads", columns)
    module = model.get_submodule(attention.name)
    for inner, tensor in (*module.named_parameters(), *module.named_buffers()):
        path = f"{attention.name}.{inner}".lstrip(".")
        if path.rpartition(".")[0] in (*attention.giving, attention.out):
            continue
        heads = [dim for dim, size in enumerate(tensor.shape) if size == attention.groups > 1]
        if len(heads) == 1:
            axes[path, heads[0]] = Axis("passes", np.arange(attention.groups))
        elif "." not in inner and tensor.shape == columns.shape:  # a bias kept apart
            axes[path, 0] = Axis("passes", columns)
    known = {path for path, _ in (*model.named_parameters(), *model.named_buffers())}
    return {where: axis for where, axis in axes.items() if where[0] in known}


def linear(model: nn.Module, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def shrink(model: nn.Module, attention: Attention, kept: Sequence[int]) -> Undo:
    """Keep these groups of heads of one attention module, in place; returns what undoes it."""
    module = model.get_submodule(attention.name)
    before = _axes(model, attention)
    after = {where: Axis(axis.role, axis.channels[np.isin(axis.channels, kept)]) for where, axis in before.items()}
    undo = resized(model, before, after)
    for stated in (*_COUNTS, *_WIDTHS):
        value = getattr(module, stated, None)
        if type(value) is int:
            undo.append(partial(setattr, module, stated, value))
            setattr(module, stated, value * len(kept) // attention.groups)
    return undo
