"""Numbers and verdicts as words: the same ones in the report, on the terminal and in the picture.

A *point* is a hundredth of the score. Bounds are rounded up, so that what is printed is never less than what was shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from laconic.core import JsonObject

_TIE_SIZE = 0.01
_FLOAT_BITS = 32
_METRICS = {"top1": "top-1 accuracy", "agreement": "agreement with the original"}
_SHORT = {"top1": "top-1"}


def size(value: float) -> str:
    """Bytes for people, in powers of ten."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{factor(value / scale)} {unit}"
    return f"{value:.0f} B"


def count(value: float) -> str:
    """A count for people: 2.29 M."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{factor(value / scale)} {unit}"
    return f"{value:.0f}"


def latency(ms: float) -> str:
    """A time for people: 36.3 µs, 4.15 ms."""
    if ms >= 1000:
        return f"{factor(ms / 1000)} s"
    return f"{factor(ms)} ms" if ms >= 1 else f"{factor(ms * 1000)} µs"


def factor(value: float) -> str:
    """A number for people, three digits of it: 1.68, 11.4, 114."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def points(fraction: float) -> str:
    """0.005 -> 0.50, in points."""
    return f"{100 * fraction + 0.0:.2f}".replace("-0.00", "0.00")


def points_at_most(fraction: float) -> str:
    """A bound in points, rounded up."""
    return f"{math.ceil(1e4 * fraction - 1e-6) / 100 + 0.0:.2f}"


def percent(fraction: float) -> str:
    """0.95 -> 95 %, 0.999 -> 99.9 %."""
    return f"{100 * fraction:.6g} %"


def smaller(ratio: JsonObject) -> str:
    """What became of the file."""
    value = float(ratio["size"])
    if abs(value - 1) < _TIE_SIZE:
        return "as large as the original"
    return f"{factor(value)}x smaller" if value > 1 else f"{factor(1 / value)}x larger"


def packed(ratio: JsonObject, payload_bytes: float) -> str:
    """What became of the packed file, and how much of it is weights (codes, codebooks, scales, biases)."""
    return f"{smaller({'size': ratio['packed']})}; {size(payload_bytes)} are weights"


def faster(ratio: JsonObject) -> str:
    """What became of the latency; one whose interval holds 1 is no change. Of weights that are only stored short no
    speed is told."""
    if ratio.get("only_stored"):
        return "computed in float32"
    speed = ratio["latency"]
    if speed["low"] <= 1 <= speed["high"]:
        return "as fast as the original"
    return f"{factor(speed['value'])}x faster" if speed["value"] > 1 else f"{factor(1 / speed['value'])}x slower"


def formats(rows: Sequence[JsonObject]) -> list[str]:
    """What a file's layers of few bits are stored at, and what the runtime computes them in, a sentence each; rows as
    runtimes give them (``stored_bits``, ``computed``, ``layers``)."""
    lines = []
    for row in rows:
        layers = f"{row['layers']:,} layer{'s' * (row['layers'] != 1)}"
        if row["computed"] == "float32" and row["stored_bits"] < _FLOAT_BITS:
            why = "the runtime has no kernel for this format, which makes the file smaller and nothing faster"
            lines.append(f"{layers} stored at {row['stored_bits']} bit, computed in float32: {why}.")
        elif row.get("rounded"):
            lines.append(f"{layers} of few values stored and computed in float32: this runtime's files know no less.")
        elif row["stored_bits"] < _FLOAT_BITS:
            lines.append(f"{layers} stored at {row['stored_bits']} bit, computed in {row['computed']}.")
    return lines


def only_stored(rows: Sequence[JsonObject]) -> bool:
    """Whether everything of few bits is computed in float32: then no speed comes from it."""
    short = [row for row in rows if row["stored_bits"] < _FLOAT_BITS or row.get("rounded")]
    return bool(short) and all(row["computed"] == "float32" for row in short)


def metric(name: str) -> str:
    """The score's name, written out."""
    return _METRICS.get(name, name)


def short_metric(name: str) -> str:
    """The score's name, for narrow places."""
    return _SHORT.get(name, name)


def headline(dossier: JsonObject) -> tuple[str, str, str]:
    """What became of the model, the verdict, and what is known of its score."""
    became = f"{smaller(dossier['ratio'])}, {faster(dossier['ratio'])}"
    found: Any = dossier["certificate"]
    if found is None:
        return became, _UNDECIDED, _WHY_UNDECIDED
    name, sure = short_metric(found["metric"]), percent(found["confidence"])
    if dossier["status"] == "certified":
        again = "" if found["independent"] else ", not independent"
        return became, "certified", f"{name} {_fell_at_most(found['bound'])} at {sure}{again}"
    if found.get("withheld"):
        return became, "NOT CERTIFIED", found["withheld"]
    bound, allowed = points_at_most(found["bound"]), points(found["max_drop"])
    return became, "NOT CERTIFIED", f"{name} may have fallen by up to {bound} points at {sure}, {allowed} being allowed"


def in_words(dossier: JsonObject) -> str:
    """The certificate as a sentence."""
    found: Any = dossier["certificate"]
    if found is None:
        return f"{_UNDECIDED}: {_WHY_UNDECIDED}"
    measured = f"{metric(found['metric'])} {_fell(found['drop'])} on {found['n']} held-out samples"
    bound = f"at {percent(found['confidence'])} confidence it {_fell_at_most(found['bound'])}"
    allowed = f"{points(found['max_drop'])} being allowed"
    if dossier["status"] != "certified":
        why = f"{found['withheld']}; of this one, " if found.get("withheld") else ""
        return f"NOT CERTIFIED: {why}{measured}; {bound}, {allowed}"
    again = "" if found["independent"] else f" (this holdout was opened {found['opening']} times: not independent)"
    return f"certified: {measured}; {bound}, {allowed}{again}"


def explained(dossier: JsonObject) -> list[str]:
    """The certificate for somebody who does not read intervals, as paragraphs."""
    found: Any = dossier["certificate"]
    without_labels = [_WITHOUT_LABELS] if dossier["metric"]["name"] == "agreement" else []
    if found is None:
        return [*without_labels, _RUNNING]
    sure, allowed = percent(found["confidence"]), points(found["max_drop"])
    lines = [*without_labels, _counted(dossier, found)]
    if dossier["status"] == "certified":
        lines.append(
            f"On data like these samples, {metric(found['metric'])} {_fell_at_most(found['bound'])}; {allowed} were "
            f"allowed. A statement made in this way is true at least {sure} of the time."
        )
    else:
        lines.append(_unproved(found))
    if not found["independent"]:
        lines.append(
            f"This holdout was opened {found['opening']} times. What was learned from earlier openings may have led to "
            "this model, so the evidence is not independent, and the confidence stated may be too high."
        )
    return lines


_UNDECIDED, _WHY_UNDECIDED = "not certified yet", "the search was still running when this was written"
_RUNNING = (
    "The search was still running when this was written. The scores are those of the samples that the search chooses "
    "by, which flatter the chosen. The certificate comes at its end, from samples that it has not seen."
)
_WITHOUT_LABELS = (
    "There were no labels. The score is agreement: the share of samples on which the small model decides as the "
    "original does. The original scores 100 % by definition; whether it is right, this cannot tell."
)


def _fell(drop: float) -> str:
    if drop == 0:
        return "did not change"
    return f"rose by {points(-drop)} points" if drop < 0 else f"fell by {points(drop)} points"


def _fell_at_most(bound: float) -> str:
    """The bound of a drop; one below zero says that the score rose."""
    words = points_at_most(bound)
    return f"rose by at least {words[1:]} points" if words.startswith("-") else f"fell by at most {words} points"


def _counted(dossier: JsonObject, found: JsonObject) -> str:
    n, name = found["n"], metric(found["metric"])
    aside = f"On {n:,} samples that were kept aside until the search had ended"
    before, after = dossier["baseline"]["score"], dossier["best"]["score"]
    if found["lost"] is None:
        return f"{aside}, {name} went from {before:.4f} to {after:.4f}: it {_fell(found['drop'])}."
    if found["metric"] == "agreement":
        return f"{aside}, the small model decided differently from the original on {found['lost']:,}."
    return (
        f"{aside}, the original is right on {round(before * n):,} and the small model on {round(after * n):,}: "
        f"{found['lost']:,} were lost and {found['won']:,} won, so {name} {_fell(found['drop'])}."
    )


def _unproved(found: JsonObject) -> str:
    if found.get("withheld"):
        return f"But {found['withheld']}: this is only what came nearest."
    bound, allowed, sure = points_at_most(found["bound"]), points(found["max_drop"]), percent(found["confidence"])
    if found["drop"] > found["max_drop"]:
        return f"That is more than the {allowed} points allowed; at {sure} confidence it may be up to {bound}."
    if found["bound"] <= found["max_drop"]:
        return (
            f"Alone, the bound of {bound} points would be within the {allowed} allowed. But candidates are tested in "
            "an order that was written down before, and an earlier one failed: after that nothing is proved."
        )
    return (
        f"This is no proof that it fell by less than the {allowed} points allowed: at {sure} "
        f"confidence it may have fallen by up to {bound}. More held-out samples would give a tighter bound."
    )
