"""What the coverage benchmark does with one network, in a process of its own.

``examine``: load, profile, prune, deploy, compare. ``by_torch_pruning``: the same network by torch-pruning's own
high-level API, as its documentation shows it. ``through_onnx``: the network as torch's two exporters write it, read
back and pruned.
"""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn

from benchmarks.coverage_networks import Network
from laconic import models, surgery
from laconic.core import Arrays, Batch, Context, Metric, Recipe, Target, Task
from laconic.errors import LaconicError
from laconic.profile import profile
from laconic.runtime import onnxruntime
from laconic.runtime.difference import relative_error
from laconic.steps.prune.channels import PruneChannels
from laconic.steps.prune.heads import PruneHeads

RATIO = 0.3
TOLERANCE = 1e-3
"""Of the deployed file from torch, as a share of the output's norm."""

Row = dict[str, Any]


def examine(network: Network) -> Row:
    """The row of one network: its ``status`` is passed, left whole or failed; ``why`` says of the last two why."""
    torch.set_num_threads(1)
    row: Row = {}
    stage = "load"
    try:
        model, inputs = network.open()
        row["input"] = {name: list(x.shape[1:]) for name, x in inputs.items()}
        stage = "profile"
        before = profile(model, _tensors(inputs))
        row |= {"params": before.params, "macs": before.macs, "unsupported": dict(before.unsupported)}
        stage = "prune"
        recipe = Recipe((PruneHeads(RATIO), PruneChannels(RATIO)))
        pruned, facts = recipe.apply(model, task_of(inputs), Context(onnxruntime.traits(Target("onnxruntime"))))
        row |= _removed(facts)
        wanted, found = (outputs(m, inputs) for m in (model, pruned))
        if not _alike(wanted, found):
            return row | {"status": "failed", "why": "prune: outputs that are not finite or of another shape"}
        stage = "profile what is left"
        after = profile(pruned, _tensors(inputs))
        row |= {"params_left": after.params, "macs_left": after.macs}
        stage = "deploy"
        row["difference"] = deployed(pruned, inputs, found)
        if row["difference"] > TOLERANCE:
            return row | {"status": "failed", "why": f"deploy: ONNX Runtime differs by {row['difference']:.2g}"}
    except Exception as error:  # a benchmark of what may go wrong
        return row | {"status": "failed", "why": f"{stage}: {_line(error)}"}
    return row | ({"status": "passed"} if after.params < before.params else {"status": "left whole"})


def _removed(facts: Sequence[Mapping[str, Any]]) -> Row:
    heads, channels = facts
    return {
        "heads": sum(map(len, heads["removed"].values())),
        "groups": len(channels["removed"]),
        "channels": sum(map(len, channels["removed"].values())),
        "left_whole": dict(Counter([*heads["left_whole"].values(), *channels["left_whole"].values()])),
    }


def by_torch_pruning(network: Network) -> Row:
    """torch-pruning alone, as in its tests of torchvision: magnitude of groups, the classifier ignored."""
    try:
        model, inputs = network.open()
        wanted, params = outputs(model, inputs), _params(model)
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            model.requires_grad_(True)
            last = surgery.output_layers(surgery.trace(model, _tensors(inputs)))
            example = _tensors(inputs)
            pruner = tp.pruner.MagnitudePruner(
                model,
                example_inputs=next(iter(example.values())) if len(example) == 1 else example,
                importance=tp.importance.MagnitudeImportance(),
                pruning_ratio=RATIO,
                ignored_layers=[model.get_submodule(name) for name in last],
            )
            pruner.step()
        left = _params(model)
        found = outputs(model, inputs)
    except Exception as error:  # whatever it runs into is what is asked
        return {"status": "failed", "why": _line(error)}
    if not _alike(wanted, found):
        return {"status": "failed", "why": "outputs that are not finite or of another shape"}
    return {"status": "passed" if left < params else "left whole", "params_left": left}


EXPORTERS = {"torch.export": True, "TorchScript": False}
"""torch's two exporters of ONNX, and what ``dynamo`` is in each."""


def through_onnx(network: Network, exporter: str) -> Row:
    """Export as torch does, load the file, compare with torch, prune channels of what was loaded, deploy it."""
    stage, path = "export", Path("model.onnx")
    try:
        model, inputs = network.open()
        (x,) = _tensors(inputs).values()
        wanted = outputs(model, inputs)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = Path(folder) / "model.onnx"
            torch.onnx.export(
                model, (x[:1],), str(path), dynamo=EXPORTERS[exporter], external_data=False, verbose=False
            )
            del model  # the largest leave no room for two
            stage = "load"
            loaded = models.load(str(path))
        stage = "compare"
        difference = _differ(outputs(loaded.module, inputs), wanted)
        row: Row = {"status": "agrees", "difference": difference, "unsupported": loaded.module.unsupported}
        if difference > TOLERANCE:
            return row | {"status": "failed", "why": f"it differs from torch by {difference:.2g}"}
        stage = "prune"
        traits = onnxruntime.traits(Target("onnxruntime"))
        pruned, (facts,) = Recipe((PruneChannels(RATIO),)).apply(loaded.module, task_of(inputs), Context(traits))
        row["channels"] = sum(map(len, facts["removed"].values()))
        row["left_whole"] = dict(Counter(facts["left_whole"].values()))
        row |= {"params": _params(loaded.module), "params_left": _params(pruned)}
        del loaded
        stage = "deploy what was pruned"
        row["difference_pruned"] = deployed(pruned, inputs, outputs(pruned, inputs))
        return row | ({"status": "pruned"} if row["channels"] and row["difference_pruned"] < TOLERANCE else {})
    except Exception as error:  # a benchmark of what may go wrong
        return {"status": "failed", "why": f"{stage}: {_line(error).replace(str(path), 'the file')}"}


# ------------------------------------------------------------------------------------------------------------- helpers


class Rows:
    """A split of arrays without labels."""

    def __init__(self, inputs: Arrays) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def read(self, indices: Any) -> Batch:
        return Batch({name: x[list(indices)] for name, x in self.inputs.items()}, None)


def task_of(inputs: Arrays) -> Task:
    """A task of these inputs alone; magnitudes need no more."""
    rows = Rows(inputs)
    nothing = Metric(
        "none", lambda outputs, targets: np.zeros(1), lambda outputs: np.zeros(1), lambda records: 0.0, True
    )
    return Task("noise", nothing, rows, rows, rows, None, False, "noise", calibration=len(rows))


def deployed(model: nn.Module, inputs: Arrays, wanted: Mapping[str, Tensor]) -> float:
    """The largest relative difference between the deployed file and torch."""
    target = Target("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnxruntime.deploy(model, inputs, path, target)
        found = onnxruntime.open_file(path, target)(inputs)
    return _differ({name: torch.as_tensor(x) for name, x in found.items()}, wanted)


def _differ(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """The largest relative difference, outputs taken in order."""
    return max(relative_error(x.numpy(), y.numpy()) for x, y in zip(found.values(), wanted.values(), strict=True))


@torch.no_grad()
def outputs(model: nn.Module, inputs: Arrays) -> dict[str, Tensor]:
    return surgery.call(model.eval(), _tensors(inputs))


def _tensors(inputs: Arrays) -> dict[str, Tensor]:
    return {name: torch.as_tensor(x) for name, x in inputs.items()}


def _alike(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> bool:
    same = [found[name].shape == y.shape and bool(torch.isfinite(found[name]).all()) for name, y in wanted.items()]
    return len(found) == len(wanted) and all(same)


def _params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _line(error: BaseException) -> str:
    kind = "" if isinstance(error, LaconicError) else f"{type(error).__name__}: "
    lines = str(error).strip().splitlines()
    return (kind + (lines[0] if lines else "no message"))[:300]
