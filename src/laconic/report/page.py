"""The report as one HTML file that loads nothing: its style, its pictures and its few lines of script are inside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from laconic.core import JsonObject
from laconic.report import sections, theme
from laconic.report.files import content, template
from laconic.report.layers import Layer, layers
from laconic.report.picture import picture
from laconic.report.recipe import command, goal_in_words, to_yaml
from laconic.report.trials import STATUSES, Row, rows
from laconic.report.words import count, explained, factor, headline, percent, points, points_at_most, size

_LAYERS_SHOWN = 24
_HEADINGS = {"certified": "The certificate", "uncertified": "No certificate", "running": "No certificate yet"}


def render(dossier: JsonObject) -> str:
    """The report of a dossier; the same dossier gives the same bytes."""
    found = {**_page(dossier), **_certain(dossier), **_searched(dossier), **_model(dossier), **_evidence(dossier)}
    return (
        template("template.html.j2").render(**found).encode(errors="replace").decode()
    )  # a path may hold what UTF-8 cannot


def _page(dossier: JsonObject) -> JsonObject:
    script = content("sort.js")
    found = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    became, verdict, known = headline(dossier)
    return {
        "state": _state(dossier),
        "chip": verdict,
        "became": became,
        "known": known,
        "version": dossier["laconic"],
        "created": dossier["created"],
        "model": dossier["model"]["source"],
        "note": dossier["model"]["note"],
        "model_hash": dossier["model"]["fingerprint"][:16],
        "target": dossier["target"],
        "data": dossier["data"]["source"],
        "data_hash": dossier["data"]["fingerprint"],
        "seed": dossier["seed"],
        "goal": goal_in_words(dossier),
        "light": Markup(theme.variables(theme.LIGHT)),
        "dark": Markup(theme.variables(theme.DARK)),
        "style": Markup(content("style.css").replace("FONT", theme.FONT)),
        "picture_style": Markup(theme.PICTURE),
        "script": Markup(script),
        "script_hash": f"sha256-{found}",
    }


def _state(dossier: JsonObject) -> str:
    return "running" if dossier["certificate"] is None else str(dossier["status"])


def _certain(dossier: JsonObject) -> JsonObject:
    return {
        "heading": _HEADINGS[_state(dossier)],
        "explained": explained(dossier),
        "strip": _strip(dossier["certificate"]),
        "certificate": sections.certificate(dossier),
        "tested": sections.tested(dossier),
    }


def _strip(found: Any) -> JsonObject | None:
    """The certificate on a line: where the drop, its bound and the floor lie, in percent of its width."""
    if found is None:
        return None
    low = min(0.0, found["drop"])
    right = max(found["bound"], found["max_drop"], found["drop"])
    pad = 0.06 * (right - low)

    def at(value: float) -> float:
        return float(round(100 * (value - low + pad) / (right - low + 2 * pad), 2))

    words = {
        "drop_words": f"measured: {points(found['drop'])} points",
        "bound_words": f"at most, at {percent(found['confidence'])}: {points_at_most(found['bound'])} points",
        "floor_words": f"allowed: {points(found['max_drop'])} points",
    }
    places = {"zero": at(0.0), "drop": at(found["drop"]), "bound": at(found["bound"]), "floor": at(found["max_drop"])}
    return {
        **words,
        **places,
        "width": round(at(found["bound"]) - at(found["drop"]), 2),
        "label": ", ".join(words.values()),
    }


def _searched(dossier: JsonObject) -> JsonObject:
    found = rows(dossier)
    tried = sum(row.status != "original" for row in found)
    return {
        "tried": f"What was tried: {tried} candidate{'s' * (tried != 1)}",
        "picture": Markup(picture(dossier, 900, 430)),
        "picture_narrow": Markup(picture(dossier, 400, 430)),
        "caption": _caption(dossier),
        "trials": [_cells(row) for row in found],
    }


def _caption(dossier: JsonObject) -> str:
    return (
        "Each disc is a candidate, timed on this machine; its area is the size of its file. Up and to the left is "
        f"better. Upright bars: what {dossier['splits']['search']:,} search samples leave open about the drop. Stairs: "
        "the candidates that no other beats in both. By these samples candidates are chosen; the certificate comes "
        "from others. Triangles at the lower edge lie further down. Each mark leads to its row under All trials."
    )


def _cells(row: Row) -> JsonObject:
    """A row of the table of trials: what is shown, and what it is sorted by."""
    shown = row.status != "original"
    return {
        "number": row.number,
        "name": row.name,
        "reason": " ".join(filter(None, [row.reason, *row.formats])),
        "status": row.status,
        "outcome": STATUSES[row.status],
        "drop": points(row.drop[0]) if row.drop else "",
        "drop_interval": f"{points(row.drop[1])} to {points_at_most(row.drop[2])}" if row.drop and shown else "",
        "drop_value": f"{row.drop[0]:.6f}" if row.drop else "",
        "speed": "float32" if row.only_stored else f"{factor(row.speedup[0])}x" if row.speedup else "",
        "speed_interval": f"{factor(row.speedup[1])} to {factor(row.speedup[2])}"
        if row.speedup and shown and not row.only_stored
        else "",
        "speed_value": f"{row.speedup[0]:.6f}" if row.speedup else "",
        "file": size(row.file_bytes) if row.file_bytes else "",
        "bytes_value": f"{row.file_bytes:.0f}" if row.file_bytes else "",
        "seconds": f"{row.seconds:.1f} s",
        "seconds_value": f"{row.seconds:.3f}",
    }


def _model(dossier: JsonObject) -> JsonObject:
    every = layers(dossier)
    largest = sorted(every, key=lambda layer: -max(layer.macs))[: _LAYERS_SHOWN // 2]
    few = [layer for layer in every if layer in largest]
    many = len(every) > _LAYERS_SHOWN
    names = ("name", "before", "after", "change")
    return {
        "compared": [dict(zip(names, row, strict=True)) for row in sections.compared(dossier)],
        "not_counted": [*sections.not_counted(dossier), *sections.formats(dossier), *sections.warnings(dossier)],
        "layers": _bars(few if many else every, every),
        "all_layers": _bars(every, every) if many else [],
        "recipe": to_yaml(dossier["recipe"]),
        "command": command(dossier),
        "facts_of_steps": sections.steps(dossier),
        "after_steps": sections.after_steps(dossier),
    }


def _bars(shown: Sequence[Layer], every: Sequence[Layer]) -> list[JsonObject]:
    """Rows of layers with the lengths of their bars, in percent of the longest of ``every``."""
    most = [max((max(getattr(layer, name)) for layer in every), default=0) or 1 for name in ("macs", "params")]

    def cell(pair: tuple[int, int], whole: int) -> JsonObject:
        shares = [f"{100 * value / whole:.3g}" for value in pair]
        return {"before": count(pair[0]), "after": count(pair[1]), "before_share": shares[0], "after_share": shares[1]}

    return [
        {"name": row.name, "removed": row.removed, "cells": [cell(row.macs, most[0]), cell(row.params, most[1])]}
        for row in shown
    ]


def _evidence(dossier: JsonObject) -> JsonObject:
    return {
        "minimality": sections.minimality(dossier),
        "minimality_words": sections.minimality_words(dossier),
        "machine": sections.machine(dossier),
        "noisy": sections.noisy(dossier),
        "timing": sections.timing(dossier),
        "reach": sections.reach(dossier),
        "reach_words": sections.reach_words(dossier),
        "provenance": sections.provenance(dossier),
        "corrupt": dossier["data"].get("corrupt", {}).get("names", []),
        "preprocess": sections.preprocess(dossier),
    }
