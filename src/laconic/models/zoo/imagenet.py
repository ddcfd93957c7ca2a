"""The classes of ILSVRC 2012, which the networks for ImageNet tell apart."""

from __future__ import annotations

from importlib import resources


def labels() -> tuple[str, ...]:
    """The names of the 1000 classes, in the usual order."""
    return tuple(resources.files(__package__).joinpath("imagenet.txt").read_text("utf-8").splitlines())
