"""What the user wants: what is to be small, what must not be lost, and when to end. Read from the words of the command
line, so that Python and the command line mean the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from laconic.errors import GoalError

_UNITS_TIME = {"s": 1.0, "m": 60.0, "h": 3600.0}
_UNITS_LATENCY = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_UNITS_SIZE = {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def _split_unit(text: str) -> tuple[float, str] | None:
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z%]*)\s*", text)
    return (float(match[1]), match[2]) if match else None


@dataclass(frozen=True)
class Limit:
    """A limit on a measured quantity: ``value`` in ms or bytes, or a fraction of the baseline's if ``relative``."""

    value: float
    relative: bool

    def against(self, baseline: float) -> float:
        return self.value * baseline if self.relative else self.value

    @classmethod
    def parse(cls, text: str, units: Mapping[str, float], example: str) -> Limit:
        parts = _split_unit(text)
        if parts and parts[0] > 0 and parts[1] == "%":
            return cls(parts[0] / 100, relative=True)
        if parts and parts[0] > 0 and parts[1] in units:
            return cls(parts[0] * units[parts[1]], relative=False)
        raise GoalError("a limit that cannot be read", got=repr(text), wanted=f"for example {example} or 60%")


@dataclass(frozen=True)
class Budget:
    """When the search ends: after ``seconds`` of work or after ``trials`` rows, whichever is given."""

    seconds: float | None = 600.0
    trials: int | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        parts = _split_unit(text)
        if parts:
            number, unit = parts
            if unit in _UNITS_TIME:
                return cls(seconds=number * _UNITS_TIME[unit])
            if unit in ("trials", "trial") and number == int(number):
                return cls(seconds=None, trials=int(number))
            if text.strip() == "0":
                return cls(seconds=None, trials=0)
        raise GoalError("a budget that cannot be read", got=repr(text), wanted="for example 10m, 90s, 40trials or 0")


@dataclass(frozen=True)
class Goal:
    """What to make small, and what must not be lost.

    ``max_drop`` is the floor: how far the metric may fall, in the metric's own unit (0.01 is one point), or as a
    fraction of the baseline's score if ``relative``; None takes 0.01, or 0.05 disagreement where there are no labels.
    """

    minimize: Literal["latency", "size", "macs"] = "latency"
    max_drop: float | None = None
    relative: bool = False
    confidence: float = 0.95
    max_latency: Limit | None = None
    max_size: Limit | None = None
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        if self.minimize not in ("latency", "size", "macs"):
            raise GoalError("unknown objective", got=repr(self.minimize), wanted="latency, size or macs")
        if self.max_drop is not None and not 0 < self.max_drop < 1:
            raise GoalError("a floor out of range", got=self.max_drop, wanted="a drop above 0 % and below 100 %")
        if not 0.5 <= self.confidence < 1:
            raise GoalError("a confidence out of range", got=self.confidence, wanted="50 % up to, not including, 100 %")

    @classmethod
    def parse(
        cls,
        minimize: str = "latency",
        max_drop: str | None = None,
        confidence: str = "95%",
        max_latency: str | None = None,
        max_size: str | None = None,
        budget: str = "10m",
    ) -> Goal:
        """A goal from the strings of the command line: ``1%``, ``1%rel``, ``95%``, ``5ms``, ``25%``, ``40trials``."""
        relative = max_drop is not None and max_drop.endswith("rel")
        return cls(
            minimize=minimize,  # type: ignore[arg-type]  # __post_init__ refuses other words
            max_drop=None if max_drop is None else percent(max_drop.removesuffix("rel"), "--max-drop"),
            relative=relative,
            confidence=percent(confidence, "--confidence"),
            max_latency=Limit.parse(max_latency, _UNITS_LATENCY, "5ms") if max_latency else None,
            max_size=Limit.parse(max_size, _UNITS_SIZE, "1MB") if max_size else None,
            budget=Budget.parse(budget),
        )


def percent(text: str, option: str) -> float:
    """``1%`` -> 0.01; raises :class:`GoalError` naming ``option`` for anything else."""
    parts = _split_unit(text)
    if not parts or parts[1] != "%":
        raise GoalError(f"{option} cannot be read", got=repr(text), wanted="a percentage, for example 1% or 95%")
    return parts[0] / 100


def size_bytes(text: str, option: str) -> int:
    """``1MB`` -> 1,000,000; raises :class:`GoalError` naming ``option`` for anything else."""
    parts = _split_unit(text)
    if not parts or parts[1] not in _UNITS_SIZE:
        raise GoalError(f"{option} cannot be read", got=repr(text), wanted="a size, for example 1MB or 512KiB")
    return int(parts[0] * _UNITS_SIZE[parts[1]])
