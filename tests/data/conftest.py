"""Small pictures and tables, made on the spot; and the public data, where it is there."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (16, 16), mode: str = "RGB") -> Image.Image:
    """Noise of ``size`` (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(seed: int, size: tuple[int, int] = (16, 16), kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    picture(seed, size).save(out, kind)
    return out.getvalue()


@pytest.fixture
def make_picture() -> Callable[..., Image.Image]:
    return picture


@pytest.fixture
def make_encoded() -> Callable[..., bytes]:
    return encoded


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write ``n`` pictures of each class below tmp_path/name; a class "" is the folder itself."""

    def make(name: str, classes: Sequence[str] = ("cat", "dog"), n: int = 12, start: int = 0) -> Path:
        for number, word in enumerate(classes):
            folder = tmp_path / name / word
            folder.mkdir(parents=True, exist_ok=True)
            for row in range(n):
                (folder / f"{row:03d}.png").write_bytes(encoded(start + number * 1000 + row))
        return tmp_path / name

    return make


@pytest.fixture
def make_parquet(tmp_path: Path) -> Callable[..., Path]:
    def make(columns: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        table = pyarrow.table(columns)
        parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / "data.parquet")
        return tmp_path / "data.parquet"

    return make


@pytest.fixture
def public() -> Callable[[str], str]:
    """The path of a file of the public data sets, or a skip that says so."""

    def find(name: str) -> str:
        default = Path(__file__).parents[2] / ".." / "shared" / "data"
        path = Path(os.environ.get("LACONIC_DATA", default)) / name
        if not path.exists():
            pytest.skip(f"no {name}: set LACONIC_DATA to the folder of public data sets")
        return str(path)

    return find
