"""The colours, stated once: of the page by day and by night, and of the picture."""

from __future__ import annotations

import re

LIGHT = {
    "paper": "#ffffff",
    "panel": "#f6f7f8",
    "ink": "#16191d",
    "quiet": "#5d6670",
    "line": "#dfe3e7",
    "grid": "#eceff1",
    "good": "#0a7d5a",
    "pass": "#0b7a8a",
    "fail": "#c05a0c",
    "bad": "#b42318",
    "below": "#fdf1ef",
    "chosen": "#1f4fd8",
    "before": "#c3c9d0",
}
DARK = {
    "paper": "#111417",
    "panel": "#1a1e22",
    "ink": "#e8ebee",
    "quiet": "#9aa4ae",
    "line": "#30363c",
    "grid": "#22272c",
    "good": "#3fc492",
    "pass": "#3bb6c6",
    "fail": "#f0923f",
    "bad": "#ff7a6b",
    "below": "#261918",
    "chosen": "#7da2ff",
    "before": "#4a525a",
}

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

PICTURE = """
.front text { font-family: FONT; font-size: 12px; fill: var(--ink); font-variant-numeric: tabular-nums; }
.front .title { font-size: 17px; font-weight: 650; }
.front .known { font-size: 14px; font-weight: 600; }
.front .good { fill: var(--good); }
.front .bad { fill: var(--bad); }
.front .quiet { fill: var(--quiet); }
.front .chosen-text { fill: var(--chosen); font-weight: 650; }
.front .floor-text { fill: var(--bad); }
.front .halo { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
.front .grid { stroke: var(--grid); }
.front .axis { stroke: var(--quiet); }
.front .below { fill: var(--below); }
.front .floor { stroke: var(--bad); stroke-width: 1.25; stroke-dasharray: 5 3; }
.front .stairs { fill: none; stroke: var(--quiet); stroke-width: 1; stroke-opacity: .7; }
.front .leader { stroke: var(--quiet); stroke-width: .75; }
.front .bar { stroke-opacity: .4; }
.front .passes { stroke: var(--pass); fill: var(--pass); fill-opacity: .8; }
.front .fails { stroke: var(--fail); stroke-width: 1.5; fill: var(--paper); fill-opacity: .6; }
.front .noisy { stroke: var(--quiet); stroke-width: 1.25; stroke-dasharray: 2 2; fill: none; }
.front .rejected { stroke: var(--quiet); stroke-width: 1.5; fill: none; }
.front .failed { stroke: var(--bad); stroke-width: 1.5; fill: none; }
.front .original { stroke: var(--ink); stroke-width: 1.5; fill: var(--ink); fill-opacity: .08; }
.front .chosen { stroke: var(--chosen); stroke-width: 1.5; fill: var(--chosen); fill-opacity: .9; }
.front .bar.chosen { stroke-width: 2; }
.front .ring { fill: none; }
""".replace("FONT", FONT).strip()

BARS = """
.front .part { shape-rendering: crispEdges; }
.front .part:hover { fill-opacity: .8; }
.front .between { stroke: var(--paper); stroke-opacity: .28; stroke-width: .75; }
.front .edge { stroke: var(--paper); stroke-width: 1.5; }
.front .ribbon { fill-opacity: .2; }
.front .rest { fill: var(--before); }
.front .on { fill: #ffffff; font-weight: 600; pointer-events: none; }
""".strip()
"""Of the picture of a profile; :func:`along` colours its parts."""

_ALONG = ("#1f4fd8", "#0b7a8a", "#0a7d5a", "#8a7410", "#c05a0c", "#b42318", "#8b2a7d")


def along(fraction: float) -> str:
    """A colour of the way from the first part of a network (0) to its last (1), dark enough for white letters."""
    place = fraction * (len(_ALONG) - 1)
    low = min(int(place), len(_ALONG) - 2)
    pairs = ((int(_ALONG[low][i : i + 2], 16), int(_ALONG[low + 1][i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(a + (b - a) * (place - low)):02x}" for a, b in pairs)


def variables(colours: dict[str, str]) -> str:
    """The colours as CSS variables."""
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


def fixed(css: str) -> str:
    """The style sheet with the light colours written in: for a file that has no page around it."""
    return re.sub(r"var\(--(\w+)\)", lambda match: LIGHT[match[1]], css)
