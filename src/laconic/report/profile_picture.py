"""The picture of a profile: where the parameters, MACs, bytes and milliseconds of a network are.

One bar per quantity, each from the network's first layer to its last, so that a part of the network is a ribbon that
runs down through all bars: wide where it weighs much. Parts are the network's own blocks; within one, each layer is
told apart by a fine line and names itself where the pointer rests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from laconic.core import JsonObject
from laconic.report import theme
from laconic.report.profiles import headline, shares, short_name
from laconic.report.svg import Box, element, escape, line, shorten, text, text_width
from laconic.report.words import count, latency, size

_FEWEST, _MOST, _HEAVY = 5, 11, 0.5
_BAR, _GAP, _TITLE = 34.0, 46.0, 22.0
_BOLD = 13.0  # bold letters of 12 pixels are as wide as plain ones of 13
_LEAST_SHOWN = 0.6
"""Narrower than so many pixels, a layer has no line of its own."""


@dataclass(frozen=True)
class Quantity:
    """What one bar shows: its name, the key of the layers' rows, how it is written, what it is of."""

    name: str
    key: str
    words: Callable[[float], str]
    basis: str


@dataclass(frozen=True)
class Block:
    """Consecutive layers, by index; the last block of the runtime's own nodes has none."""

    name: str
    layers: tuple[int, ...]


def profile_svg(found: JsonObject) -> str:
    """The picture as a file of its own, on a light ground, for a README."""
    width = 900.0
    height = 84 + _height(found)
    name = shorten(short_name(found), 60)
    ground = {"fill": theme.LIGHT["paper"], "stroke": theme.LIGHT["line"]}
    return element(
        "svg",
        element("title", escape(f"{name}: {headline(found)}")),
        element("style", escape(theme.fixed(theme.PICTURE + "\n" + theme.BARS))),
        element("rect", x=0.5, y=0.5, width=width - 1, height=height - 1, rx=8, **ground),
        text(24, 37, name, "title"),
        text(24, 59, headline(found), "quiet"),
        _drawing(found, (24, 74, width - 24, height)),
        xmlns="http://www.w3.org/2000/svg",
        class_="front",
        role="img",
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
    )


def picture(found: JsonObject, width: float) -> str:
    """The picture as a part of the page, which colours it."""
    height = _height(found)
    label = f"Where the parameters, MACs, bytes and milliseconds are: {headline(found)}"
    drawing = _drawing(found, (0, 0, width, height))
    return element("svg", drawing, class_="front", viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label)


def quantities(found: JsonObject) -> list[Quantity]:
    """The bars: milliseconds only where the runtime told them."""
    known = [
        Quantity("parameters", "params", count, "counted"),
        Quantity("MACs", "macs", count, "counted"),
        Quantity("bytes to and from DRAM", "dram_bytes", size, f"modelled, cache of {size(found['cache_bytes'])}"),
    ]
    if any(row["time_ms"] for row in found["layers"]):
        known.append(Quantity("milliseconds", "time_ms", latency, f"measured, {found['target']}"))
    return [quantity for quantity in known if any(row[quantity.key] for row in found["layers"])]


def _height(found: JsonObject) -> float:
    n = len(quantities(found))
    return n * (_TITLE + _BAR) + (n - 1) * (_GAP - _TITLE) + 18


# -------------------------------------------------------------------------------------------------------------- blocks


def blocks(found: JsonObject) -> list[Block]:
    """The network in at most eleven parts, by its modules' names: the heaviest part is divided until there are enough
    and none is half of anything, then neighbours that weigh little are joined."""
    rows = found["layers"]
    columns = [shares(found, quantity.key) for quantity in quantities(found)]
    used = [i for i in range(len(rows)) if any(column[i] for column in columns)]
    names = {i: rows[i]["name"].split(".") for i in used}

    def weight(group: Sequence[int]) -> float:
        return max((sum(column[i] for i in group) for column in columns), default=0.0)

    groups = _divided(used, names, weight)
    while len(groups) > _MOST:
        _, at = min((weight(a) + weight(b), i) for i, (a, b) in enumerate(pairwise(groups)))
        groups[at : at + 2] = [groups[at] + groups[at + 1]]
    every = [rows[i]["name"] for i in used]
    return [Block(_named([rows[i]["name"] for i in group], every), tuple(group)) for group in groups]


def _divided(
    used: list[int], names: Mapping[int, list[str]], weight: Callable[[Sequence[int]], float]
) -> list[list[int]]:
    """Runs of layers whose names begin alike, the heaviest compared by more and more of their names' parts."""
    runs = [(used, 0)]
    while True:
        open_ = [run for run in runs if len(run[0]) > 1 and any(len(names[i]) > run[1] for i in run[0])]
        heaviest = max(open_, key=lambda run: weight(run[0]), default=None)
        if heaviest is None or (len(runs) >= _FEWEST and weight(heaviest[0]) < _HEAVY):
            return [run for run, _ in runs]
        depth, at = heaviest[1] + 1, runs.index(heaviest)
        parts = groupby(heaviest[0], key=lambda i: names[i][:depth])
        runs[at : at + 1] = [(list(part), depth) for _, part in parts]


def _named(names: Sequence[str], every: Sequence[str]) -> str:
    """What the names have in common, where no other layer shares it; else the first and the last of them."""
    parts = [name.split(".") for name in names]
    common = [column[0] for column in zip(*parts, strict=False) if len(set(column)) == 1]
    common = next((parts[0][:n] for n in range(len(common), 0, -1) if all(p[:n] == parts[0][:n] for p in parts)), [])
    if common and sum(name.split(".")[: len(common)] == common for name in every) == len(names):
        return ".".join(common)
    depth = len(common)
    first, last = (part[depth : depth + 1] for part in (parts[0], parts[-1]))
    ends = dict.fromkeys(end or "(model)" for end in ("".join(first), "".join(last)))
    return ".".join([*common, "\N{EN DASH}".join(ends)])


# ------------------------------------------------------------------------------------------------------------- drawing


def _drawing(found: JsonObject, area: Box) -> str:
    left, top, right, _ = area
    parts, known = blocks(found), quantities(found)
    colours = [theme.along(i / max(1, len(parts) - 1)) for i in range(len(parts))]
    bars, ribbons, before = [], [], None
    for row, quantity in enumerate(known):
        y = top + _TITLE + row * (_BAR + _GAP)
        column = shares(found, quantity.key)
        edges = [left]
        for block in parts:
            edges.append(edges[-1] + (right - left) * sum(column[i] for i in block.layers))
        bars.append(_heading(found, quantity, left, right, y))
        for block, colour, (start, end) in zip(parts, colours, pairwise(edges), strict=True):
            bars.append(_segment(found, quantity, block, colour, (start, y, end, y + _BAR)))
        if right - edges[-1] > 0.05:
            bars.append(_rest(found, (edges[-1], y, right, y + _BAR)))
        if before is not None:
            ribbons += [
                _ribbon(colour, upper, lower, y - _GAP, y)
                for colour, upper, lower in zip(colours, pairwise(before), pairwise(edges), strict=True)
            ]
        before = edges
    return "".join(ribbons + bars)


def _heading(found: JsonObject, quantity: Quantity, left: float, right: float, y: float) -> str:
    whole = sum(row[quantity.key] or 0 for row in found["layers"])
    whole += sum(found["other_ms"].values()) if quantity.key == "time_ms" else 0
    least = "at least " if found["unsupported"] and quantity.key == "macs" else ""
    words = f"{least}{quantity.words(whole)}"
    return text(left, y - 7, quantity.name, "known halo") + text(
        right, y - 7, f"{words}, {quantity.basis}", "quiet halo", "end"
    )


def _segment(found: JsonObject, quantity: Quantity, block: Block, colour: str, box: Box) -> str:
    """A block's part of a bar: its layers one after the other, and its name where it fits."""
    left, top, right, bottom = box
    if right - left < 0.05:
        return ""
    column = shares(found, quantity.key)
    whole = sum(column[i] for i in block.layers)
    x, marks = left, []
    for i in block.layers:
        width = (right - left) * column[i] / whole
        if width <= 0:
            continue
        name, value = found["layers"][i]["name"] or "(model)", found["layers"][i][quantity.key]
        said = element("title", escape(f"{name}: {quantity.words(value)}, {column[i]:.1%} of the {quantity.name}"))
        marks.append(
            element("rect", said, x=x, y=top, width=max(width, 0.01), height=bottom - top, fill=colour, class_="part")
        )
        if x > left and width > _LEAST_SHOWN:
            marks.append(line(x, top, x, bottom, "between"))
        x += width
    marks += [line(left, top, left, bottom, "edge")]
    return "".join(marks) + _label(block.name, whole, box)


def _label(name: str, share: float, box: Box) -> str:
    """The block's name and share, or the share, as far as there is room."""
    room = box[2] - box[0] - 12
    x, y = box[0] + 7, (box[1] + box[3]) / 2 + 4
    rest, number = name.partition(".")[2], re.search(r"\d+$", name)
    short = [f".{rest}  {share:.0%}", f".{rest}"] if rest else []
    short += [f"\N{HORIZONTAL ELLIPSIS}{number[0]}"] if number else []
    for words in (f"{name}  {share:.0%}", name, *short, f"{share:.0%}"):
        if text_width(words, _BOLD) <= room:
            return text(x, y, words, "on")
    return ""


def _rest(found: JsonObject, box: Box) -> str:
    """The time of nodes that the runtime put in."""
    left, top, right, bottom = box
    slowest = sorted(found["other_ms"].items(), key=lambda entry: -entry[1])[:6]
    named = ", ".join(f"{name} {latency(ms)}" for name, ms in slowest)
    said = element("title", escape(f"the runtime's own: {named}"))
    return element("rect", said, x=left, y=top, width=right - left, height=bottom - top, class_="rest")


def _ribbon(colour: str, upper: tuple[float, float], lower: tuple[float, float], top: float, bottom: float) -> str:
    """A block's way from one bar to the next."""
    if upper[1] - upper[0] < 0.05 and lower[1] - lower[0] < 0.05:
        return ""
    (a, b), (c, d), y = upper, lower, (top + bottom) / 2
    there = f"M{a:.2f} {top:.1f}C{a:.2f} {y:.1f} {c:.2f} {y:.1f} {c:.2f} {bottom:.1f}"
    back = f"H{d:.2f}C{d:.2f} {y:.1f} {b:.2f} {y:.1f} {b:.2f} {top:.1f}Z"
    return element("path", d=there + back, fill=colour, class_="ribbon")
