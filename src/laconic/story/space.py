"""What of a model can be chosen, as the search is told it: groups of channels, layers with their costs, the target."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from torch import Tensor, nn

from laconic import surgery
from laconic.core import JsonObject, Traits
from laconic.profile import profile
from laconic.steps.prune.groups import coupling

_LEAST_CHANNELS = 8


def space(model: nn.Module, inputs: Mapping[str, Tensor], keep: Sequence[str], traits: Traits) -> JsonObject:
    """Read by :meth:`laconic.search.space.Space.of`; ``inputs`` are one sample."""
    coupled = coupling(copy.deepcopy(model), inputs, keep)
    whole = profile(model, inputs)
    rows = {row.name: row for row in whole.layers}
    return {
        "groups": [[group.name, group.channels] for group in coupled.groups],
        "left_whole": coupled.left_whole,
        "layers": [
            {
                "name": name,
                "kind": "linear" if isinstance(layer, nn.Linear) else "conv",
                "macs": rows[name].macs,
                "params": rows[name].params,
                "gives": next((g.name for g in coupled.groups if name in g.layers), None),
                "reads": {g.name: g.readers[name] for g in coupled.groups if name in g.readers},
                "factors": None if surgery.matches(name, keep) else factors(model, layer),
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


def factors(model: nn.Module, layer: surgery.Layer) -> str | None:
    """The step that writes such a layer as a product, if one is worth it: k x 1 and 1 x k where there is a kernel (on
    ResNet-20 it lost a fifth to a half of what Tucker-2 and low rank did, for equal MACs), else low rank."""
    out, inputs = layer.weight.shape[:2]
    if hasattr(model, "to_onnx") or getattr(layer, "groups", 1) > 1 or min(out, inputs) < _LEAST_CHANNELS:
        return None
    kernel = layer.weight.shape[2:]
    return "SpatiallySeparable" if len(kernel) == 2 and min(kernel) > 1 else "LowRank"
