"""Whoever wants to know how the search is going."""

from __future__ import annotations

from collections.abc import Sequence

from laconic.core import JsonObject, Trial


class Reporter:
    """Hears everything and says nothing; :mod:`laconic.console` speaks."""

    def note(self, text: str) -> None:
        """Something that the user should read once."""

    def preflight(self, described: JsonObject, baseline: Trial, notes: Sequence[str]) -> None:
        """The original was measured; ``notes`` say what it does and what can be proved."""

    def trying(self, text: str, seconds_left: float | None, trials_left: int | None) -> None:
        """A new piece of work begins, with so much of the budget left."""

    def tried(self, trial: Trial) -> None:
        """A trial is finished, or was found finished in the ledger."""

    def best(self, trial: Trial) -> None:
        """This trial is the best so far that passes on search."""

    def progress(self, text: str, fraction: float) -> None:
        """How far the piece of work under way is."""
