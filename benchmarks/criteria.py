"""Criteria for pruning: one shot, without training, each criterion with and without recovery.

Structured: the same share of every group's channels, and of every layer's attention heads, goes, chosen so that the
network has half of its MACs (which of them go is the criterion's). Unstructured: 80 % of the weights of every layer.
Every figure is the deployed file's, in ONNX Runtime; calibration takes the 128 samples that the networks' tasks set
aside. Nothing is trained, nothing is chosen on the samples that are scored; the control takes what chance gives, with
the seed 0. A network has the rows that make sense for it: scales and statistics of batch norms where it has some, with
heads the criteria of heads.

``python -m benchmarks.criteria NAME ...`` runs the networks whose names hold one of these words again; the rows of all
others stay in the record.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from benchmarks import llama, records
from benchmarks.networks import NETWORKS, Network, in_order
from laconic import measure, proof, surgery
from laconic.core import Context, JsonObject, Recipe, Target, Traits
from laconic.profile import profile
from laconic.runtime import onnxruntime
from laconic.steps.prune import attention
from laconic.steps.prune.channels import ChannelCriterion, PruneChannels
from laconic.steps.prune.heads import HeadCriterion, PruneHeads
from laconic.steps.prune.weights import PruneWeights, WeightCriterion

TARGET = Target("onnxruntime")
CHOSEN: dict[str, Callable[[], Network]] = {
    **{name: NETWORKS[name] for name in ("ResNet-56, CIFAR-10", "MobileNetV1 0.75, ImageNet")},
    "Llama, Tiny Shakespeare": llama.load,
}
HALF, SPARSITY = 0.5, 0.8
_HALVINGS = 7


def main(folder: Path, words: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run the benchmark; what was found so far is written after each network."""
    found: dict[str, Any] = {"sparsity": SPARSITY, "macs_wanted": HALF, "skipped": {}, "rows": []}
    kept = records.read("criteria") if words else {}
    if kept:
        found |= {key: kept[key] for key in found}
    for name, network in records.opened(CHOSEN, words, found["skipped"]):
        others = [row for row in found["rows"] if row["network"] != name]
        found["rows"] = in_order([*others, *_rows(name, network)], CHOSEN)
        records.write(folder, "criteria", found)
    return found


def _rows(name: str, network: Network) -> Iterator[JsonObject]:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        baseline = _records(network, network.loaded.module, path)
        whole, context = _macs(network, network.loaded.module), _context(network)
        for recipe in _recipes(network.loaded.module, _ratio(network, whole)):
            model, facts = recipe.apply(network.loaded.module, network.task, context)
            found = _records(network, model, path)
            drop, bound = proof.bound_drop(baseline, found, 0.95, binary=True)
            weights = [layer.weight for layer in surgery.weighted_layers(model).values()]
            row: JsonObject = {
                "network": name,
                "recipe": recipe.to_json(),
                "n": len(found),
                "top1_float": float(np.mean(baseline)),
                "top1": float(np.mean(found)),
                "drop": drop,
                "drop_at_most": bound,
                "macs": _macs(network, model),
                "macs_float": whole,
                "zeros": sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights),
                "left_whole": len(facts[-1]["left_whole"]),
            }
            print(row, flush=True)
            yield row


def _recipes(module: nn.Module, ratio: float) -> Iterator[Recipe]:
    normed = any(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())
    for criterion in get_args(HeadCriterion if attention.find(module) else ChannelCriterion):
        if normed or criterion != "bn_scale":
            for recovery in ("none", "batch_norm", "least_squares") if normed else ("none", "least_squares"):
                yield _smaller(module, ratio, criterion=criterion, recovery=recovery)
    for weight_criterion in get_args(WeightCriterion):
        for update in ("none", "obs"):
            yield Recipe((PruneWeights(1 - SPARSITY, criterion=weight_criterion, update=update),))


def _smaller(module: nn.Module, ratio: float, **settings: Any) -> Recipe:
    """Without this share of the channels and, where there is attention, of the heads."""
    heads = (PruneHeads(ratio, **settings),) if attention.find(module) else ()
    return Recipe((*heads, PruneChannels(ratio, **settings)))


def _context(network: Network) -> Context:
    module = network.loaded.module
    return Context(Traits(), reference=lambda inputs: surgery.call(module, inputs))


def _ratio(network: Network, whole: int) -> float:
    """The share of all channels and heads without which half of the MACs are left."""
    low, high = 0.0, 1.0 - 1e-3
    for _ in range(_HALVINGS):
        ratio = (low + high) / 2
        model, _ = _smaller(network.loaded.module, ratio).apply(network.loaded.module, network.task, _context(network))
        low, high = (ratio, high) if _macs(network, model) > HALF * whole else (low, ratio)
    return high


def _macs(network: Network, model: Any) -> int:
    inputs = {name: torch.as_tensor(x) for name, x in network.task.train.read([0, 1]).inputs.items()}
    return profile(copy.deepcopy(model).eval(), inputs).macs


def _records(network: Network, model: Any, path: Path) -> Any:
    """Of each sample of search, then of holdout, whether the deployed file is right."""
    onnxruntime.deploy(model, network.task.train.read([0, 1]).inputs, path, TARGET)
    session = onnxruntime.open_file(path, TARGET)
    splits = (network.task.search, network.task.holdout)
    return np.concatenate([measure.records(session, split, network.task.metric) for split in splits])


if __name__ == "__main__":
    main(records.FOLDER, tuple(sys.argv[1:]))
