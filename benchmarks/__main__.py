"""``python -m benchmarks [NAME ...]``: run the benchmarks, keep their records, write the README's tables."""

from __future__ import annotations

import importlib
import sys

from benchmarks import tables
from benchmarks.records import FOLDER, Skipped

ALL = (
    "startup",
    "certificate",
    "demo",
    "lenet",
    "kill",
    "mobilenet",
    "quantization",
    "mixed",
    "ladder",
    "weights",
    "resnet20",
    "cluster",
    "vendors",
    "w4",
    "resnet56",
    "sparse24",
    "factorize",
    "criteria",
    "post_training",
    "priced",
    "packing",
    "fuzz",
    "deep_compression",
    "hashed",
    "mnist_records",
    "netadapt",
    "energy",
    "training",
    "coverage",
)


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in ALL]
    if unknown:
        print(f"no such benchmark: {unknown[0]}; there are {', '.join(ALL)}", file=sys.stderr)
        return 2
    for name in names or ALL:
        print(f"== {name}", flush=True)
        try:
            importlib.import_module(f"benchmarks.{name}").main(FOLDER)
        except Skipped as reason:
            print(f"skipped: {reason}")
    tables.write()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
