"""The marks of the picture: one form and colour for each thing that can become of a trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from laconic.report.svg import Box, element, escape, shorten, text, text_width
from laconic.report.trials import STATUSES, Row
from laconic.report.words import factor, points, size

LANE = 18.0
"""The height of a row of marks that have no place in the plane."""
_LEGEND = 20.0
_UNPLACED = {"rejected": "rejected early", "failed": "failed"}


def unplaced(found: Sequence[Row]) -> dict[str, list[Row]]:
    """The trials that cannot be placed by latency and drop, under what became of them."""
    lanes: dict[str, list[Row]] = {}
    for row in found:
        if not (row.cost and row.drop):
            lanes.setdefault(_UNPLACED.get(row.status, "not timed"), []).append(row)
    return lanes


def shape(status: str, x: float, y: float, r: float, beyond: bool = False) -> str:
    """A status's mark, told apart by its form as much as by its colour; ``beyond`` points out of the picture."""
    if beyond:
        return element("path", d=f"M{x - 4:.1f} {y - 9:.1f}h8l-4 7z", class_=status)
    if status == "noisy":
        return element(
            "path", d=f"M{x:.1f} {y - r:.1f}l{r:.1f} {r:.1f} {-r:.1f} {r:.1f} {-r:.1f} {-r:.1f}z", class_=status
        )
    if status == "rejected":
        return element("path", d=f"M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6", class_=status)
    if status == "failed":
        return element("path", d=f"M{x:.1f} {y - 4:.1f}l4.5 8h-9z", class_=status)
    disc = element("circle", cx=x, cy=y, r=r, class_=status)
    return disc + element("circle", cx=x, cy=y, r=r + 4, class_="chosen ring") if status == "chosen" else disc


def described(row: Row, mark: str, linked: bool) -> str:
    """A mark with the words that appear over it; ``linked`` leads to the row of the page's table."""
    facts = [f"{row.number}. {shorten(row.name, 160)}", STATUSES[row.status]]
    facts += [row.reason] if row.reason else []
    if row.cost and row.drop:
        facts.append(f"{factor(row.cost[0])}x the original's latency, drop {points(row.drop[0])} points")
    facts += [size(row.file_bytes)] if row.file_bytes else []
    group = element("g", element("title", escape("\n".join(facts))), mark)
    return element("a", group, href=f"#trial-{row.number}") if linked else group


def legend(placed: Sequence[Row], area: Box) -> tuple[str, float]:
    """The statuses that occur, with their counts, from the area's upper left; and how high that is."""
    x, y, parts = area[0] + 8, area[1], []
    for status, words in STATUSES.items():
        n = sum(row.status == status for row in placed)
        if not n:
            continue
        counted = words if status in ("chosen", "original") else f"{words} ({n})"
        if x + 15 + text_width(counted) > area[2]:
            x, y = area[0] + 8, y + _LEGEND
        parts += [shape(status, x, y - 4, 4.5), text(x + 13, y, counted, "quiet")]
        x += text_width(counted) + 36
    return "".join(parts), y - area[1]


def lanes(found: Mapping[str, Sequence[Row]], area: Box, linked: bool) -> str:
    """One mark for each trial without a place in the plane, in the order in which they were made."""
    parts, y = [], area[1]
    start = area[0] + text_width("000 rejected early") + 14
    for words, group in found.items():
        step = min(13.0, (area[2] - start - 6) / len(group))
        parts.append(text(area[0], y + 4, f"{len(group)} {words}", "quiet"))
        parts += [described(row, shape(row.status, start + i * step, y, 4), linked) for i, row in enumerate(group)]
        y += LANE
    return "".join(parts)
