"""What can be chosen: plain data, no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from laconic.core import JsonObject, Width

KEEPS = (1.0, 7 / 8, 3 / 4, 5 / 8, 1 / 2, 7 / 16, 3 / 8, 5 / 16, 1 / 4, 3 / 16, 1 / 8, 3 / 32, 1 / 16, 1 / 32)
"""The notches: fractions of a group's channels that may be kept, each a small step from the one before."""

FACTORED = (0.0, 1 / 3, 1 / 2, 2 / 3, 3 / 4, 5 / 6)
"""The forms of a layer: the shares of its MACs that go when it is written as a product of smaller ones."""

PROBED = (0.25, 0.5, 0.75)
"""The fractions removed of a group at which its damage is measured; without training the first two."""
PROBED_FORMS = (0.5, 0.75)


@dataclass(frozen=True)
class LayerCost:
    """A layer of the original: its cost, the group that it ``gives``, and the share of its inputs from each group.

    ``kind`` is ``conv`` or ``linear``; ``factors`` the step that writes such a layer as a product, or None.
    """

    name: str
    kind: str
    macs: float
    params: float
    gives: str | None
    reads: Mapping[str, float]
    factors: str | None = None

    def share(self, keeps: Mapping[str, float]) -> float:
        """How much of its work is left where these shares of the groups' channels stay (of those not named all)."""
        lost = sum(share * (1 - keeps.get(group, 1.0)) for group, share in self.reads.items())
        return (keeps.get(self.gives, 1.0) if self.gives else 1.0) * (1 - lost)


@dataclass(frozen=True)
class Allocation:
    """What is done to each group (``notches``, indices into :data:`KEEPS`) and layer (``forms``, into
    :data:`FACTORED`); those not named are left as they are."""

    notches: Mapping[str, int] = field(default_factory=dict)
    forms: Mapping[str, int] = field(default_factory=dict)

    @property
    def keeps(self) -> dict[str, float]:
        """The share of each group's channels that stays."""
        return {group: KEEPS[notch] for group, notch in self.notches.items()}


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
            LayerCost(r["name"], r["kind"], r["macs"], r["params"], r["gives"], r["reads"], r["factors"])
            for r in space["layers"]
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

    @property
    def structural(self) -> bool:
        """Whether there is anything that can be removed."""
        return bool(self.groups or self.factorable)

    @property
    def factorable(self) -> list[LayerCost]:
        """The layers that can be written as a product."""
        return [layer for layer in self.layers if layer.factors]
