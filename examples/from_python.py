"""A torch module and its DataLoaders, shrunk from Python.

    python examples/from_python.py [FOLDER]

Trains a small network on scikit-learn's digits, then asks for the smallest file whose accuracy is at most three points
lower, at 95 % confidence. Takes a minute or two.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import laconic


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def trained(loader: DataLoader[tuple[torch.Tensor, ...]]) -> nn.Module:
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(12):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval()


def main(folder: Path) -> None:
    torch.set_num_threads(1)  # for so small a network more of them only wait for each other
    digits = load_digits()
    data = TensorDataset(
        torch.as_tensor(digits.images[:, None] / 16, dtype=torch.float32), torch.as_tensor(digits.target)
    )
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
    train = DataLoader(Subset(data, order[:900]), batch_size=64, shuffle=True)
    search, holdout = (DataLoader(Subset(data, rows), batch_size=64) for rows in (order[900:1200], order[1200:]))

    result = laconic.shrink(
        trained(train),
        laconic.from_loaders(train, search, holdout),
        laconic.Goal.parse(minimize="size", max_drop="3%", budget="20trials"),
        out=folder,
    )

    before, after = result.summary["baseline"], result.summary["best"]
    print(f"{before['file_bytes']:,} -> {after['file_bytes']:,} bytes, {before['score']:.1%} -> {after['score']:.1%}")
    print(f"{result.summary['status']}; the report is {result.package.folder / 'report.html'}")
    assert result.certified
    assert result.summary["ratio"]["size"] > 3


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch) / "package")
