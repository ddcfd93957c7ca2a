"""An ONNX file, quantized without labels and without its source code, through the command line.

    python examples/onnx_file.py [FOLDER]

Writes a network as ONNX and some pictures as plain arrays, as they might come from somebody else. What is certified is
that the small file decides as the original does, on all but five in a hundred samples. Takes a quarter of a minute.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from sklearn.datasets import load_digits
from torch import nn

from laconic.cli import main as laconic


def write_network(path: Path, x: torch.Tensor, y: torch.Tensor) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # for so small a network more of them only wait for each other
    model = nn.Sequential(
        *(nn.Conv2d(1, 48, 3), nn.ReLU(), nn.Conv2d(48, 48, 3), nn.ReLU(), nn.Flatten()), nn.Linear(48 * 16, 10)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    free = {0: torch.export.Dim("batch", min=1, max=4096)}
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(model.eval(), (x[:2],), path, dynamo=True, dynamic_shapes=(free,), external_data=False)


def main(folder: Path) -> None:
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    write_network(folder / "network.onnx", torch.as_tensor(images[:600]), torch.as_tensor(digits.target[:600]))
    np.savez(folder / "pictures.npz", x=images)

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = laconic([
            *("shrink", str(folder / "network.onnx"), "--data", str(folder / "pictures.npz")),
            *("--out", str(folder / "package"), "--minimize", "size", "--no-train", "--budget", "1trials", "--json"),
        ])  # fmt: skip
    summary = json.loads(said.getvalue())
    certificate = summary["certificate"]
    print(f"{summary['status']}: {summary['ratio']['size']:.2f}x smaller")
    assert code == 0
    print(f"other decisions on at most {certificate['bound']:.2%} of samples like these {certificate['n']}")
    assert certificate["metric"] == "agreement"
    assert summary["ratio"]["size"] > 3

    small = folder / "small.onnx"  # the package keeps it packed; this is an ONNX file like any other
    with contextlib.redirect_stdout(said):
        assert laconic(["export", str(folder / "package"), "--target", "onnxruntime", "--out", str(small)]) == 0
    session = onnxruntime.InferenceSession(small)
    (logits,) = session.run(None, {session.get_inputs()[0].name: images[:1]})
    assert logits.argmax() == digits.target[0]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch))
