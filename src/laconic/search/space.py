"""What can be chosen, and a rough cost of what was chosen: plain data, no model.

The cost only orders allocations before anything is built; what counts afterwards is measured on the deployed file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from laconic.core import JsonObject, Width

KEEPS = (1.0, 7 / 8, 3 / 4, 5 / 8, 1 / 2, 7 / 16, 3 / 8, 5 / 16, 1 / 4, 3 / 16, 1 / 8, 3 / 32, 1 / 16, 1 / 32)
"""The notches: fractions of a group's channels that may be kept, each a small step from the one before."""

PROBED = (0.25, 0.5, 0.75)
"""The fractions removed at which a group's damage is measured; without training the first alone."""

_MACS_PER_PARAM = 8.0
"""At batch 1 a weight is read once per sample: so many multiplications cost as much as one byte-sized weight."""


@dataclass(frozen=True)
class LayerCost:
    """A layer of the original: its cost, the group that it ``gives``, and the share of its inputs from each group.

    ``kind`` is ``conv`` or ``linear``.
    """

    name: str
    kind: str
    macs: float
    params: float
    gives: str | None
    reads: Mapping[str, float]


@dataclass(frozen=True)
class Space:
    """Groups of channels with their sizes, layers with their costs, and what the target offers.

    ``widths``: what weights take in the target's files, by the bits of their codes.
    """

    groups: Mapping[str, int]
    layers: Sequence[LayerCost]
    integer: bool
    precisions: Sequence[str]
    trainable: bool
    n_train: int
    widths: Mapping[int, Width] = field(default_factory=lambda: {8: Width(8.0)})

    @classmethod
    def of(cls, described: JsonObject) -> Space:
        """From what :meth:`laconic.story.evaluate.Evaluator.describe` says."""
        space = described["space"]
        layers = [
            LayerCost(r["name"], r["kind"], r["macs"], r["params"], r["gives"], r["reads"]) for r in space["layers"]
        ]
        return cls(
            groups=dict(space["groups"]),
            layers=layers,
            integer=space["integer"],
            precisions=space["precisions"],
            widths={bits: Width(**width) for bits, width in space["widths"]},
            trainable=described["trainable"],
            n_train=described["splits"]["train"],
        )

    def cost(self, notches: Mapping[str, int], minimize: Literal["latency", "size", "macs"]) -> float:
        """The cost of the network with each group at its notch (an index into :data:`KEEPS`), over the original's.

        A layer costs what it did times the share of its channels that stay, on both sides.
        """
        weight_macs = 0.0 if minimize == "size" else 1.0
        weight_params = {"size": 1.0, "macs": 0.0, "latency": _MACS_PER_PARAM}[minimize]
        now = before = 0.0
        for layer in self.layers:
            cost = weight_macs * layer.macs + weight_params * layer.params
            out = KEEPS[notches.get(layer.gives, 0)] if layer.gives else 1.0
            lost = sum(share * (1 - KEEPS[notches.get(group, 0)]) for group, share in layer.reads.items())
            before += cost
            now += cost * out * (1 - lost)
        return now / before if before else 1.0
