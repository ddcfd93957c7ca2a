"""``digits``: the 1,797 handwritten digits of scikit-learn, 8x8 grey, float32 (n, 1, 8, 8) in 0..1.

They come with the library, so nothing is read from outside. A folder of that name is ``./digits``.
"""

from __future__ import annotations

import numpy as np

from laconic.data.arrays import array_source
from laconic.data.source import Request, Source


def matches(spec: str) -> bool:
    return spec == "digits"


def open_source(spec: str, request: Request) -> Source:
    from sklearn.datasets import load_digits

    found = load_digits()
    x = (found.images[:, None] / 16).astype(np.float32)
    return array_source(spec, {"all": (x, found.target)}, request, classes=tuple("0123456789"))
