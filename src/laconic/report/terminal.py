"""The report on a terminal: the same facts in short, at most 80 columns wide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from laconic.core import JsonObject, describe
from laconic.report import sections
from laconic.report.layers import layers
from laconic.report.recipe import goal_in_words
from laconic.report.svg import shorten
from laconic.report.trials import STATUSES, rows
from laconic.report.words import count, explained, headline

_WIDTH, _BAR, _NAME = 80, 24, 30
_LAYERS, _REASONS = 12, 3
_COLOURS = {"certified": "bold green", "NOT CERTIFIED": "bold red"}


def print_report(dossier: JsonObject) -> None:
    """Print a dossier on standard output."""
    console = Console(highlight=False)
    console.width = min(console.width, _WIDTH)
    became, verdict, known = headline(dossier)
    console.print(_text(became, "bold"))
    console.print(_text(f"{verdict}: {known}", _COLOURS.get(verdict, "bold yellow")))
    console.print(_text(shorten(f"{dossier['model']['source']} on {dossier['target']}", _WIDTH), "dim"))
    for paragraph in explained(dossier):
        console.print()
        console.print(_text(paragraph))
    if dossier["certificate"] is not None:
        numbers = sections.certificate(dossier)
        _section(console, "The certificate", [numbers[i : i + 2] for i in range(0, len(numbers), 2)])
    _section(console, "Before and after", sections.compared(dossier), ("", "original", "laconic", ""))
    _lines(console, [*sections.not_counted(dossier), *sections.formats(dossier), *sections.warnings(dossier)])
    _layers(console, dossier)
    _trials(console, dossier)
    recipe = [("chosen", describe(dossier["recipe"])), ("asked for", goal_in_words(dossier))]
    _section(console, "The recipe (recipe.yaml; the command that replays it is in report.html)", recipe)
    after = [(shorten(name, _NAME), *cells) for name, *cells in sections.after_steps(dossier)]
    if after:
        _section(console, "What each step gave, on search", after, ("", "score", "file", "MACs", "faster"))
    groups = [(group["name"], str(group["count"]), group["meaning"]) for group in sections.minimality(dossier)]
    _section(console, "Could it be smaller still?", groups)
    _lines(console, [sections.minimality_words(dossier)])
    _section(console, "Measured on this machine", sections.machine(dossier))
    _lines(console, filter(None, [sections.noisy(dossier)]))
    _section(console, "Data", [*sections.provenance(dossier)[:3], *sections.provenance(dossier)[5:7]])


def _layers(console: Console, dossier: JsonObject) -> None:
    """The layers with the most MACs, in the model's order: ``=`` is what stayed, ``-`` what went."""
    every = [layer for layer in layers(dossier) if any(layer.macs)]
    most = sorted(every, key=lambda layer: -max(layer.macs))[:_LAYERS]
    longest = max((max(layer.macs) for layer in most), default=1)
    shown = []
    for layer in (layer for layer in every if layer in most):
        before, after = (round(_BAR * macs / longest) for macs in layer.macs)
        bar = "=" * after + "-" * max(0, before - after)
        shown.append((shorten(layer.name, _NAME), bar, count(layer.macs[0]), count(layer.macs[1]), layer.removed))
    more = f", the {len(shown)} largest of {len(every)}" if len(every) > len(shown) else ""
    _section(console, f"MACs by layer (= stayed, - went{more})", shown, ("", "", "before", "after", ""))


def _trials(console: Console, dossier: JsonObject) -> None:
    """How many trials came to what, and why some failed."""
    found = [row for row in rows(dossier) if row.status != "original"]
    counts = Counter(row.status for row in found)
    told = [(words, str(counts[status])) for status, words in STATUSES.items() if counts[status]]
    _section(console, f"{len(found)} candidate{'s' * (len(found) != 1)} tried", told)
    reasons = Counter(row.reason for row in found if row.status == "failed").most_common(_REASONS)
    _lines(console, [f"{n} failed: {shorten(reason, 160)}" for reason, n in reasons])


def _section(
    console: Console, title: str, cells: Sequence[Sequence[str | tuple[str, str]]], columns: Sequence[str] = ()
) -> None:
    """A title and a table without lines; a cell that is a pair is a name with its value."""
    console.print()
    console.print(_text(title, "bold"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=bool(columns), header_style="dim")
    for i in range(max(map(len, cells), default=0)):
        name = columns[i] if columns else ""
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    for row in cells:
        table.add_row(*(_text(cell) if isinstance(cell, str) else _pair(*cell) for cell in row))
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _pair(name: str, value: str) -> Text:
    return _text(f"{name} ", "dim") + _text(value, "not dim")


def _lines(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(Padding(_text(line, "dim"), (0, 0, 0, 2), expand=False))


def _text(words: str, style: str = "") -> Text:
    """Words as they are: no markup, and no control characters from a name."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
    return Text(shown, style=style, overflow="fold")
