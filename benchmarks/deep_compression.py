"""Deep Compression on MNIST (Han, Mao and Dally 2015, arXiv 1510.00149): LeNet-300-100 and Caffe's LeNet-5.

The paper's procedure by laconic's steps: a float network; pruned to the paper's density of each layer, and trained on,
in rounds; the weights that stay put into the paper's 2^6, 2^8 or 2^5 clusters by k-means from evenly spread centroids,
and the centroids trained. Then the network is deployed as an ONNX file and packed, and what is scored is the file that
the ``.lac`` decodes to, in ONNX Runtime.

Deviations, none of which costs a byte: AdamW, training pictures moved by up to a pixel, and after pruning the float
network as a teacher. Settings were chosen on 5,000 of the training pictures, which nothing is trained on; the 10,000
test pictures are opened once for each network and seed. A seed decides the first weights and the order of everything.

Beside the ``.lac`` stands what the same weights take in the paper's own format: relative indices of 5 bits with zeros
as fillers, Huffman codes of indices and weights with their tables, codebooks and biases in float32.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from benchmarks import records
from laconic import data, measure, surgery
from laconic.core import Array, Context, Facts, JsonObject, Preprocess, Recipe, Split, Target, Task
from laconic.data.augment import shift_and_flip
from laconic.models.zoo import ZOO
from laconic.pack import container, huffman
from laconic.runtime import onnxruntime
from laconic.steps.cluster.kmeans import Cluster
from laconic.steps.prune.gradual import PruneGradually
from laconic.steps.train.device import Teacher
from laconic.steps.train.fit import Schedule, fit

NAME = "deep_compression"
SEEDS = (0, 1, 2)
HELD_OUT = 5_000
MOVED = 1
_INDEX_BITS, _TABLE_BITS = 5, 4
_TARGET = Target("onnxruntime")


class Network(NamedTuple):
    """A network of the zoo, how it is trained in float, and the recipe behind that."""

    name: str
    training: Schedule
    recipe: Recipe


def _recipe(density: Mapping[str, float], bits: Mapping[str, int], epochs: float, last: float) -> Recipe:
    """Pruned to ``density`` in ``epochs``, clustered to ``bits`` and trained for the ``last`` ones."""
    prune = PruneGradually(layers=density, rounds=4, epochs=epochs, lr=2e-3, batch=128)
    return Recipe((prune, Cluster(layers=bits, iterations=1, epochs=last, lr=5e-4, batch=128)))


NETWORKS = {
    "LeNet-300-100": Network(
        "lenet-300-100",
        Schedule(epochs=24, lr=2e-3, batch=128, weight_decay=1e-4, distill=0.0, temperature=4.0),
        _recipe({"fc1": 0.08, "fc2": 0.09, "fc3": 0.26}, {"*": 6}, epochs=24, last=2),
    ),
    "LeNet-5": Network(
        "lenet-5-caffe",
        Schedule(epochs=6, lr=2e-3, batch=128, weight_decay=1e-4, distill=0.0, temperature=4.0),
        _recipe({"conv1": 0.66, "conv2": 0.12, "fc1": 0.08, "fc2": 0.19}, {"conv*": 8, "fc*": 5}, epochs=6, last=1),
    ),
}
PUBLISHED: dict[str, JsonObject] = {
    "LeNet-300-100": {
        "error_float": 0.0164,
        "error": 0.0158,
        "bytes_float": 1_070_000,
        "bytes": 27_000,
        "layers": {
            "fc1": {"kept": 0.08, "weight_bits": 6, "weight_code": 4.4, "index_code": 3.7, "rate": 0.0232},
            "fc2": {"kept": 0.09, "weight_bits": 6, "weight_code": 4.4, "index_code": 4.3, "rate": 0.0304},
            "fc3": {"kept": 0.26, "weight_bits": 6, "weight_code": 4.3, "index_code": 3.2, "rate": 0.1270},
        },
    },
    "LeNet-5": {
        "error_float": 0.0080,
        "error": 0.0074,
        "bytes_float": 1_720_000,
        "bytes": 44_000,
        "layers": {
            "conv1": {"kept": 0.66, "weight_bits": 8, "weight_code": 7.2, "index_code": 1.5, "rate": 0.6745},
            "conv2": {"kept": 0.12, "weight_bits": 8, "weight_code": 7.2, "index_code": 3.9, "rate": 0.0528},
            "fc1": {"kept": 0.08, "weight_bits": 5, "weight_code": 4.5, "index_code": 4.5, "rate": 0.0245},
            "fc2": {"kept": 0.19, "weight_bits": 5, "weight_code": 5.2, "index_code": 3.7, "rate": 0.0613},
        },
    },
}
"""The paper's tables 1 to 3: ``weight_code`` and ``index_code`` are mean bits of the Huffman codes, ``rate`` the bytes
left of the layer's."""


def main(folder: Path) -> dict[str, Any]:
    """Run what the record does not hold yet; it is written after each network and seed."""
    task = load()
    settings = {name: _described(network) for name, network in NETWORKS.items()}
    before = records.read(NAME) or {}
    rows = list(before.get("rows", [])) if before.get("settings") == settings else []
    done = {(row["network"], row["seed"]) for row in rows}
    found: dict[str, Any] = before
    for (name, network), seed in itertools.product(NETWORKS.items(), SEEDS):
        if (name, seed) in done:
            continue
        model = trained(network, task, seed)
        small, facts = compressed(model, network.recipe, task, seed)
        layers = {layer: in_the_papers_format(x) for layer, x in surgery.weighted_layers(small).items()}
        row = {"network": name, "seed": seed, **measured(model, small, task), "layers": layers, "facts": facts}
        row["paper_format_bytes"] = sum(layer["bytes"] + layer["bias_bytes"] for layer in layers.values())
        rows.append(row)
        print(rows[-1], flush=True)
        found = records.write(folder, NAME, {"settings": settings, "published": PUBLISHED, "rows": rows})
    return found


def _described(network: Network) -> JsonObject:
    return {
        "training": asdict(network.training),
        "recipe": network.recipe.to_json(),
        "moved_pixels": MOVED,
        "held_out": HELD_OUT,
    }


def load() -> Task:
    """MNIST: of the official train part the last pictures are ``search``; the official test part is ``holdout``."""
    preprocess = Preprocess(channels="L")  # the pictures have their size already
    official = data.load(str(records.data("mnist")), preprocess=preprocess)
    x, y = _all(official.train)
    tests = [_all(split) for split in (official.search, official.holdout)]
    parts = {
        "train": (x[:-HELD_OUT], y[:-HELD_OUT]),
        "search": (x[-HELD_OUT:], y[-HELD_OUT:]),
        "holdout": tuple(np.concatenate(arrays) for arrays in zip(*tests, strict=True)),
    }
    task = data.from_splits(parts, preprocess=preprocess)
    return replace(task, augment=shift_and_flip(MOVED, flip=False))


def _all(split: Split) -> tuple[Array, Array]:
    batch = split.read(range(len(split)))
    assert batch.targets is not None
    return next(iter(batch.inputs.values())), batch.targets


def trained(network: Network, task: Task, seed: int) -> nn.Module:
    """The float network."""
    torch.manual_seed(seed)
    model = ZOO[network.name].build()
    fit(model, task.train, task.loss, None, network.training, seed, records.progress("float"), augment=task.augment)
    return model


def compressed(model: nn.Module, recipe: Recipe, task: Task, seed: int) -> tuple[nn.Module, list[Facts]]:
    """What ``recipe`` makes of a float network, and what its steps told."""
    context = Context(
        onnxruntime.traits(_TARGET), seed, reference=Teacher(model), progress=records.progress("compressed")
    )
    return recipe.apply(model, task, context)


def measured(model: nn.Module, small: nn.Module, task: Task) -> JsonObject:
    """Sizes, and errors on search and on the holdout, of a float network and of what became of it."""
    with tempfile.TemporaryDirectory() as scratch:
        whole = _deployed(model, task, Path(scratch) / "float.onnx")
        file = _deployed(small, task, Path(scratch) / "small.onnx")
        packed = container.pack_file(file)
        file.write_bytes(container.unpack(packed.content).content)  # what is scored comes from the packed bytes
        errors = {
            f"{part}_error{kind}": _error(path, split, task)
            for part, split in _splits(task).items()
            for kind, path in (("_float", whole), ("", file))
        }
        sizes = {"file_bytes_float": whole.stat().st_size, "file_bytes": file.stat().st_size}
    return {
        **errors,
        "n": {part: len(split) for part, split in _splits(task).items()},
        **sizes,
        "packed_bytes": len(packed.content),
        "payload_bytes": packed.payload,
        "packed_rows": [asdict(row) for row in packed.rows],
    }


def _splits(task: Task) -> dict[str, Split]:
    return {"held_out": task.search, "test": task.holdout}


def _deployed(model: nn.Module, task: Task, path: Path) -> Path:
    onnxruntime.deploy(model, task.train.read([0, 1]).inputs, path, _TARGET)
    return path


def _error(path: Path, split: Split, task: Task) -> float:
    return 1 - float(measure.records(onnxruntime.open_file(path, _TARGET), split, task.metric).mean())


def in_the_papers_format(layer: surgery.Layer) -> JsonObject:
    """What a layer takes in the paper's format: before Huffman codes, and, in ``bytes``, with them."""
    weight = layer.weight.detach().numpy().ravel()
    values, codes = np.unique(np.append(weight, np.float32(0)), return_inverse=True)
    zero, codes = int(codes[-1]), codes[:-1]
    runs, symbols = huffman.run_counts(codes, zero, len(values))
    entries = int(runs.sum())  # fillers included
    weight_bits = max(1, int(np.ceil(np.log2(len(values)))))
    coded = [int((counts * huffman.lengths_of(counts)).sum()) for counts in (symbols, runs)]
    codebook = 4 * (len(values) - 1)
    tables = _TABLE_BITS * (len(symbols) + len(runs)) / 8
    return {
        "weights": int(weight.size),
        "kept": float((weight != 0).mean()),
        "values": len(values),
        "fillers": entries - int((weight != 0).sum()),
        "weight_bits": weight_bits,
        "weight_code": coded[0] / entries,
        "index_bits": _INDEX_BITS,
        "index_code": coded[1] / entries,
        "bytes_without_huffman": int(np.ceil(entries * (weight_bits + _INDEX_BITS) / 8)) + codebook,
        "bytes": int(np.ceil(sum(coded) / 8 + tables)) + codebook,
        "bias_bytes": 0 if layer.bias is None else 4 * layer.bias.numel(),
    }


if __name__ == "__main__":
    main(records.FOLDER)
