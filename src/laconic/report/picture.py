"""The picture of a search: every trial by its latency and by what its score lost, with the floor as a floor.

Up and to the left is better. A disc's area is its file's size. Trials that were never timed have no place in the plane;
they stand below it, one mark each. Drops far under the floor are drawn at the lower edge.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from laconic.core import JsonObject
from laconic.report import marks, theme
from laconic.report.svg import Box, Scale, element, escape, line, place, shorten, text, text_width
from laconic.report.trials import STATUSES, Row, front, rows
from laconic.report.words import faster, headline, points, points_at_most, short_metric, smaller

_MANY = 40  # discs, above which only the front and the chosen keep their intervals
_DRAWN = sorted(STATUSES, key=["original", "noisy", "fails", "passes", "rejected", "failed", "chosen"].index)


@dataclass(frozen=True)
class Plane:
    """Where values lie: the box of the plot, both scales (of the drop downwards), the radius and the bytes of the
    original's disc."""

    box: Box
    x: Scale
    y: Scale
    radius: float
    file_bytes: float

    def middle(self, row: Row) -> tuple[float, float]:
        """The middle of a trial's mark; a drop beyond the range lies on the lower edge."""
        assert row.cost is not None
        assert row.drop is not None
        return self.x(row.cost[0]), self.y(min(row.drop[0], self.y.high))

    def size(self, row: Row) -> float:
        """A disc's radius; its area is the file's size."""
        share = (row.file_bytes or self.file_bytes) / self.file_bytes
        return float(min(max(self.radius * share**0.5, 3.0), 1.6 * self.radius))

    def around(self, row: Row) -> Box:
        """The square of a trial's mark."""
        (x, y), r = self.middle(row), self.size(row) + 4 * row.chosen
        return x - r, y - r, x + r, y + r

    def reach(self, row: Row) -> Box:
        """The interval of a trial's drop, as far as it lies in the plot."""
        assert row.drop is not None
        x, _ = self.middle(row)
        return x - 1, self.y(max(row.drop[1], self.y.low)), x + 1, self.y(min(row.drop[2], self.y.high))


def front_svg(dossier: JsonObject) -> str:
    """The picture as a file of its own, on a light ground, for a README."""
    width, height = 860.0, 420.0
    became, verdict, known = headline(dossier)
    certified = dossier["status"] == "certified"
    name = re.sub(r"[^@:]*[/\\]", "", dossier["model"]["source"])  # this is published: the user's folders are not
    letters = int((width - 76 - text_width(became, 18)) / text_width("m"))
    ground = {"fill": theme.LIGHT["paper"], "stroke": theme.LIGHT["line"]}
    return element(
        "svg",
        element("title", escape(f"{name}: {became}, {verdict}")),
        element("style", escape(theme.fixed(theme.PICTURE))),
        element("rect", x=0.5, y=0.5, width=width - 1, height=height - 1, rx=8, **ground),
        text(24, 36, became, "title"),
        text(24, 57, f"{verdict}: {known}", "known good" if certified else "known bad"),
        text(width - 28, 35, shorten(f"{name}, {dossier['target']}", letters), "quiet", "end"),
        _drawing(dossier, (24, 88, width - 28, height - 14), linked=False),
        xmlns="http://www.w3.org/2000/svg",
        class_="front",
        role="img",
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
    )


def picture(dossier: JsonObject, width: float, height: float) -> str:
    """The picture as a part of the page, which colours it; marks link to the table's rows."""
    whole = height + marks.LANE * len(marks.unplaced(rows(dossier)))
    drawing = _drawing(dossier, (0, 14, width - 8, whole), linked=True)
    label = f"Every trial by latency and drop: {', '.join(headline(dossier))}"
    return element("svg", drawing, class_="front", viewBox=f"0 0 {width:g} {whole:g}", role="img", aria_label=label)


def _drawing(dossier: JsonObject, area: Box, linked: bool) -> str:
    found = rows(dossier)
    placed, lanes = [row for row in found if row.cost and row.drop], marks.unplaced(found)
    legend, legend_height = marks.legend(placed, area)
    bottom = area[3] - 46 - marks.LANE * len(lanes)
    plane = _plane(dossier, placed, (area[0] + 42, area[1] + legend_height + 40, area[2], bottom))
    best = front(placed)
    with_bars = placed if len(placed) <= _MANY else [row for row in placed if row.chosen or row in best]
    return "".join(
        (
            legend,
            _axes(dossier, plane),
            _stairs(plane, best),
            *(_bars(plane, row) for row in with_bars),
            *(_mark(plane, row, linked) for row in sorted(placed, key=lambda r: _DRAWN.index(r.status))),
            _labels(dossier, plane, placed, with_bars),
            marks.lanes(lanes, (area[0], bottom + 58, area[2], area[3]), linked),
        )
    )


def _plane(dossier: JsonObject, placed: Sequence[Row], box: Box) -> Plane:
    costs = [1.0, *(cost for row in placed if row.cost for cost in (row.cost if row.chosen else row.cost[:1]))]
    low, high = min(costs), max(costs)
    log = high / low > 3
    pad = (high / low) ** 0.06 if log else max(high - low, 0.1) * 0.07
    x = Scale(low / pad, high * pad, box[0], box[2], log) if log else Scale(low - pad, high + pad, box[0], box[2])
    floor, drops = dossier["goal"]["max_drop"], [row.drop for row in placed if row.drop]
    near = [min(drop[2], 3 * floor) for drop in drops] + [drop[0] for drop in drops if drop[0] <= 3 * floor]
    deepest = 1.06 * max([1.5 * floor, *near, *(row.drop[0] for row in placed if row.drop and row.chosen)])
    highest = min([0.0, *(max(drop[1], -deepest / 2) for drop in drops)]) - 0.06 * deepest
    y = Scale(highest, deepest, box[1], box[3])
    return Plane(box, x, y, 11.0 if len(placed) <= _MANY else 7.0, float(dossier["baseline"]["file_bytes"]))


def _axes(dossier: JsonObject, plane: Plane) -> str:
    left, top, right, bottom = plane.box
    floor = plane.y(dossier["goal"]["max_drop"])
    parts = [element("rect", x=left, y=floor, width=right - left, height=bottom - floor, class_="below")]
    change = Scale(100 * plane.y.low, 100 * plane.y.high, top, bottom)
    for tick in change.ticks(5):
        y, words = change(tick), f"{-tick:+g}".replace("-", "\N{MINUS SIGN}") if tick else "0"
        parts += [line(left, y, right, y, "grid"), text(left - 8, y + 4, words, "quiet", "end")]
    ticks = plane.x.ticks(6 if right - left > 400 else 4)
    digits = 0 if plane.x.log else max(len(f"{tick:g}".partition(".")[2]) for tick in ticks)
    for tick in ticks:
        x, words = plane.x(tick), f"{tick:g}x" if plane.x.log else f"{tick:.{digits}f}x"
        parts += [line(x, bottom, x, bottom + 4, "axis"), text(x, bottom + 18, words, "quiet", "middle")]
    name = shorten(short_metric(dossier["metric"]["name"]), 24)
    across = "latency relative to the original's" + (", logarithmic" if plane.x.log else "")
    parts += [
        line(left, bottom, right, bottom, "axis"),
        line(left, floor, right, floor, "floor"),
        text(left - 42, top - 12, f"change of {name} on search, in points", "quiet"),
        text(left, bottom + 37, "\N{LEFTWARDS ARROW} faster", "quiet"),
        text(right, bottom + 37, across, "quiet", "end"),
    ]
    return "".join(parts)


def _stairs(plane: Plane, best: Sequence[Row]) -> str:
    """The front: at each latency, the least drop that was found."""
    if len(best) < 2:
        return ""
    corners = [plane.middle(row) for row in best]
    path = f"M{corners[0][0]:.1f} {corners[0][1]:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in corners[1:])
    return element("path", d=path, class_="stairs")


def _treads(plane: Plane, best: Sequence[Row]) -> list[Box]:
    """The level parts of the stairs."""
    corners = [plane.middle(row) for row in best]
    return [(one[0], one[1] - 1, other[0], one[1] + 1) for one, other in pairwise(corners)]


def _bars(plane: Plane, row: Row) -> str:
    """The interval of a trial's drop, as far as it lies in the plot; of the chosen that of its latency too."""
    assert row.cost is not None
    assert row.drop is not None
    if row.status == "original" or row.drop[0] > plane.y.high:
        return ""
    (x, y), (_, top, _, bottom) = plane.middle(row), plane.reach(row)
    across = line(plane.x(row.cost[1]), y, plane.x(row.cost[2]), y, "bar chosen") if row.chosen else ""
    return line(x, top, x, bottom, f"bar {row.status}") + across


def _mark(plane: Plane, row: Row, linked: bool) -> str:
    assert row.drop is not None
    beyond = row.drop[0] > plane.y.high
    return marks.described(row, marks.shape(row.status, *plane.middle(row), plane.size(row), beyond), linked)


def _labels(dossier: JsonObject, plane: Plane, placed: Sequence[Row], with_bars: Sequence[Row]) -> str:
    """The names of the floor, of the original and of the chosen, each where it covers least."""
    floor = plane.y(dossier["goal"]["max_drop"])
    taken = [plane.around(row) for row in placed] + [plane.reach(row) for row in with_bars]
    taken += [(plane.box[0], floor - 2, plane.box[2], floor + 2), *_treads(plane, front(placed))]
    named = f"the floor: {points(dossier['goal']['max_drop'])} points lost"
    wanted = [((plane.box[2], floor, plane.box[2], floor), [named], "floor-text")]
    wanted += [(plane.around(row), _annotation(dossier), "chosen-text") for row in placed if row.chosen]
    wanted += [(plane.around(row), ["the original"], "") for row in placed if row.status == "original"]
    parts = []
    for near, lines, class_ in wanted:
        spot = place(near, max(map(text_width, lines)), 15 * len(lines) + 2, taken, plane.box)
        taken.append(spot)
        parts += [_leader(near, spot)] if class_ == "chosen-text" else []
        for i, words in enumerate(lines):
            parts.append(text(spot[0], spot[1] + 12 + 15 * i, words, f"halo {class_ if not i else ''}".strip()))
    return "".join(parts)


def _leader(near: Box, spot: Box) -> str:
    """A line from a mark to its label, unless they touch."""
    x, y = (near[0] + near[2]) / 2, (near[1] + near[3]) / 2
    to_x, to_y = min(max(x, spot[0] - 3), spot[2] + 3), min(max(y, spot[1] + 2), spot[3] - 2)
    length, radius = ((to_x - x) ** 2 + (to_y - y) ** 2) ** 0.5, (near[2] - near[0]) / 2
    if length < radius + 10:
        return ""
    return line(x + (to_x - x) * radius / length, y + (to_y - y) * radius / length, to_x, to_y, "leader")


def _annotation(dossier: JsonObject) -> list[str]:
    found = dossier["certificate"]
    lines = [f"chosen: {faster(dossier['ratio'])}, {smaller(dossier['ratio'])}"]
    if found is not None:
        lines.append(f"holdout: fell {points(found['drop'])}, at most {points_at_most(found['bound'])} points")
    return lines
