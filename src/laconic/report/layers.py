"""Before and after, layer by layer: matched by name, in the original's order."""

from __future__ import annotations

from dataclasses import dataclass

from laconic.core import JsonObject

GONE, NEW = "gone", "new"


@dataclass(frozen=True)
class Layer:
    """A layer's MACs and parameters in the original and in the chosen model."""

    name: str
    macs: tuple[int, int]
    params: tuple[int, int]
    state: str

    @property
    def removed(self) -> str:
        """What happened to it, in a word."""
        if self.state:
            return self.state
        before, after = self.macs if self.macs[0] else self.params
        share = 1 - after / before if before else 0.0
        return f"{-100 * share:+.0f} %" if round(100 * share) else "="


def layers(dossier: JsonObject) -> list[Layer]:
    """Every layer that costs something in either model; those without MACs and parameters in both are left out."""
    before, after = ({row[0]: (row[1], row[2]) for row in dossier[of]["layers"]} for of in ("baseline", "best"))
    found = []
    for name in [*before, *(name for name in after if name not in before)]:
        (macs, params), (macs_left, params_left) = before.get(name, (0, 0)), after.get(name, (0, 0))
        if not any((macs, params, macs_left, params_left)):
            continue
        state = GONE if name not in after else NEW if name not in before else ""
        found.append(Layer(name or "(model)", (macs, macs_left), (params, params_left), state))
    return found
