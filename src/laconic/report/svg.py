"""SVG in small pure functions: escaping, elements, scales with their ticks, and a place for a label."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_WIDTH = 0.56  # of a letter, in font sizes: the mean of the usual sans-serifs, rounded up
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_LOG_STEPS = ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0), tuple(float(i) for i in range(1, 10)))


def escape(text: str) -> str:
    """Text for an element or an attribute; characters that XML does not allow become the replacement character."""
    return html.escape(_NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text))


def element(name: str, *children: str, **attributes: str | float) -> str:
    """An element; children are markup already. ``class_`` is ``class``, other underscores are hyphens."""
    pairs = "".join(f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"' for key, value in attributes.items())
    return f"<{name}{pairs}>{''.join(children)}</{name}>" if children else f"<{name}{pairs}/>"


def _value(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")


def text(x: float, y: float, words: str, class_: str = "", anchor: str = "start") -> str:
    """A line of text that begins, ends or is centred at x, on the baseline y."""
    return element("text", escape(words), x=x, y=y, class_=class_, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def text_width(words: str, font_size: float = 12) -> float:
    """About how wide a line of text is."""
    return len(words) * font_size * _WIDTH


def shorten(words: str, most: int) -> str:
    """Words of at most so many letters, the middle left out: the beginning and the end tell names apart."""
    if len(words) <= most:
        return words
    head = most // 2
    return words[:head] + "…" + words[len(words) - (most - 1 - head) :]


@dataclass(frozen=True)
class Scale:
    """Values ``low``..``high`` onto pixels ``start``..``end``, linearly or by their logarithms."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self, about: int) -> list[float]:
        """Round values in the range, about so many."""
        return _log_ticks(self.low, self.high, about) if self.log else _ticks(self.low, self.high, about)


def _ticks(low: float, high: float, about: int) -> list[float]:
    rough = (high - low) / about
    power: float = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in _STEPS if s * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float, about: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in _LOG_STEPS:
        found = [round(s * 10.0**d, 12) for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(found) >= about * 0.6:
            break
    return found


def place(near: Box, width: float, height: float, taken: Sequence[Box], inside: Box) -> Box:
    """Where to put a label of this size beside ``near``: the place that covers least of what is ``taken``, does not
    leave ``inside``, and is not far away."""
    found = _around(near, width, height)
    return min(found, key=lambda box: _cost(box, near, taken, inside))


def _around(near: Box, width: float, height: float) -> Iterable[Box]:
    left, top, right, bottom = near
    middle_x, middle_y = (left + right - width) / 2, (top + bottom - height) / 2
    for gap in (6, 14, 26, 42, 62, 86, 114, 146):
        for x in (right + gap, left - gap - width, middle_x, right - width / 4, left - 3 * width / 4):
            for y in (middle_y, top - gap - height, bottom + gap):
                yield x, y, x + width, y + height


def _cost(box: Box, near: Box, taken: Sequence[Box], inside: Box) -> float:
    area = (box[2] - box[0]) * (box[3] - box[1])
    outside = area - overlap(box, inside)
    covered = sum(overlap(box, other) for other in taken)
    away = abs(box[0] + box[2] - near[0] - near[2]) / 4 + abs(box[1] + box[3] - near[1] - near[3]) / 2
    return 50 * outside + 10 * covered + away


def overlap(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
