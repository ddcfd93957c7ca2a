"""What of a model can be chosen, as the search is told it: channels, heads, blocks, layers and costs, the target."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from torch import Tensor, nn

from laconic import surgery
from laconic.core import JsonObject, Traits
from laconic.profile import profile
from laconic.steps.prune.blocks import removable_blocks
from laconic.steps.prune.channels import notch
from laconic.steps.prune.groups import coupling
from laconic.steps.prune.heads import removable_heads

_LEAST_CHANNELS = 8
_HEADS, _BLOCK = "heads of {}", "block {}"


def space(model: nn.Module, inputs: Mapping[str, Tensor], keep: Sequence[str], traits: Traits) -> JsonObject:
    """Read by :meth:`laconic.search.space.Space.of`; ``inputs`` are one sample."""
    coupled = coupling(copy.deepcopy(model), inputs, keep)
    heads = removable_heads(model, inputs, keep)
    blocks = removable_blocks(model, inputs, keep)
    gives = {name: group.name for group in coupled.groups for name in group.layers}
    gives |= {layer: _HEADS.format(name) for name, one in heads.items() for layer in one.giving}
    reads = {one.out: {_HEADS.format(name): 1.0} for name, one in heads.items()}
    whole = profile(model, inputs)
    rows = {row.name: row for row in whole.layers}
    return {
        "groups": [
            *([group.name, _channels(group.channels, traits)] for group in coupled.groups),
            *(
                [_HEADS.format(name), {"units": one.groups, "step": "PruneHeads", "name": name}]
                for name, one in heads.items()
            ),
            *([_BLOCK.format(name), {"units": 1, "step": "PruneBlocks", "name": name}] for name in blocks),
        ],
        "left_whole": coupled.left_whole,
        "layers": [
            {
                "name": name,
                "kind": "linear" if isinstance(layer, nn.Linear) else "conv",
                "macs": rows[name].macs,
                "params": rows[name].params,
                "gives": gives.get(name),
                "reads": {g.name: g.readers[name] for g in coupled.groups if name in g.readers} | reads.get(name, {}),
                "factors": None if surgery.matches(name, keep) else factors(model, layer),
                "rank": rank(layer),
                "inside": next((_BLOCK.format(block) for block in blocks if name.startswith(f"{block}.")), None),
            }
            for name, layer in surgery.weighted_layers(model).items()
            if name in rows
        ],
        "integer": bool(traits.integer_operators),
        "precisions": list(traits.precisions),
        "widths": [[bits, asdict(width)] for bits, width in traits.widths.items()],
        "channel_multiple": traits.channel_multiple,
        "macs": whole.macs,
        "params": whole.params,
    }


def _channels(count: int, traits: Traits) -> JsonObject:
    return {"units": count, "step": "PruneChannels", "notch": notch(count, traits.channel_multiple)}


def rank(layer: surgery.Layer) -> float:
    """The rank of the product, k x 1 and 1 x k or two matrices, that has as many MACs as the layer (at stride 1)."""
    out, inputs = layer.weight.shape[:2]
    height, width = layer.weight.shape[2:] if layer.weight.dim() == 4 else (1, 1)
    return float(height * width * out * inputs / (height * inputs + width * out))


def factors(model: nn.Module, layer: surgery.Layer) -> str | None:
    """The step that writes such a layer as a product, if one is worth it: k x 1 and 1 x k where there is a kernel (on
    ResNet-20 it lost a fifth to a half of what Tucker-2 and low rank did, for equal MACs), else low rank."""
    out, inputs = layer.weight.shape[:2]
    if hasattr(model, "to_onnx") or getattr(layer, "groups", 1) > 1 or min(out, inputs) < _LEAST_CHANNELS:
        return None
    kernel = layer.weight.shape[2:]
    return "SpatiallySeparable" if len(kernel) == 2 and min(kernel) > 1 else "LowRank"
