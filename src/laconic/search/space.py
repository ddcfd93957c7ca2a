"""What can be chosen: plain data, no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from laconic.core import JsonObject, Width

KEEPS = (1.0, 7 / 8, 3 / 4, 5 / 8, 1 / 2, 7 / 16, 3 / 8, 5 / 16, 1 / 4, 3 / 16, 1 / 8, 3 / 32, 1 / 16, 1 / 32)
"""The shares of a group's channels that may be kept, each a small step from the one before."""

FACTORED = (0.0, 1 / 3, 1 / 2, 2 / 3, 3 / 4, 5 / 6)
"""The forms of a layer: the shares of its MACs that go when it is written as a product of smaller ones."""

PROBED = (0.25, 0.5, 0.75)
"""The fractions removed of a group at which its damage is measured; without training the first."""
PROBED_FORMS = (0.5, 0.75)

CHANNELS, HEADS, BLOCKS = "PruneChannels", "PruneHeads", "PruneBlocks"


@dataclass(frozen=True)
class Group:
    """What goes together: channels that are coupled, the heads of an attention module, or a residual block. ``units``:
    how many there are to choose from; ``step``: the one that removes them; ``name``: what the step calls the group,
    where that is not its key (a module may hold heads and be a block); ``notch``: channels go so many at a time."""

    units: int
    step: str = CHANNELS
    name: str = ""
    notch: int = 1

    @property
    def keeps(self) -> tuple[float, ...]:
        """The shares of it that may stay, all of it first."""
        if self.step == HEADS:
            return tuple(units / self.units for units in range(self.units, 0, -1))
        if self.step == BLOCKS:
            return (1.0, 0.0)
        if self.notch == 1:
            return KEEPS
        counts = [max(1, round(keep * self.units / self.notch)) * self.notch for keep in KEEPS]
        return (1.0, *(count / self.units for count in dict.fromkeys(counts) if count < self.units))

    def probed(self, few: bool) -> list[float]:
        """The shares of it at which its damage is measured; ``few``: one alone."""
        if self.step == BLOCKS:
            return [0.0]
        wanted = [1 - ratio for ratio in PROBED[: 1 if few else None]]
        return sorted({min(self.keeps[1:], key=lambda keep: abs(keep - one)) for one in wanted}, reverse=True)


@dataclass(frozen=True)
class LayerCost:
    """A layer of the original: its cost, the group that it ``gives``, the share of its inputs from each group, and the
    residual block that it goes with (``inside``).

    ``kind`` is ``conv`` or ``linear``; ``factors`` the step that writes such a layer as a product, or None; ``rank``
    that of the product with as many MACs as the layer.
    """

    name: str
    kind: str
    macs: float
    params: float
    gives: str | None
    reads: Mapping[str, float]
    factors: str | None = None
    inside: str | None = None
    rank: float = 0.0

    def share(self, keeps: Mapping[str, float]) -> float:
        """How much of its work is left where these shares of the groups stay (of those not named all)."""
        lost = sum(share * (1 - keeps.get(group, 1.0)) for group, share in self.reads.items())
        given = keeps.get(self.gives, 1.0) if self.gives else 1.0
        return given * (1 - lost) * (keeps.get(self.inside, 1.0) if self.inside else 1.0)


@dataclass(frozen=True)
class Allocation:
    """``keeps``: the share of each group that stays; ``forms``: the share of its MACs that a layer loses as a product.
    Those not named are left as they are."""

    keeps: Mapping[str, float] = field(default_factory=dict)
    forms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Space:
    """What can be removed, layers with their costs, and what the target offers.

    ``widths``: what weights take in the target's files, by the bits of their codes.
    """

    groups: Mapping[str, Group]
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
        return cls(
            groups={key: Group(**group) for key, group in space["groups"]},
            layers=[LayerCost(**row) for row in space["layers"]],
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

    def removed_by(self, step: str) -> dict[str, str]:
        """The groups that a step removes, by their keys what it calls them."""
        return {key: group.name or key for key, group in self.groups.items() if group.step == step}

    @property
    def factorable(self) -> list[LayerCost]:
        """The layers that can be written as a product."""
        return [layer for layer in self.layers if layer.factors]
