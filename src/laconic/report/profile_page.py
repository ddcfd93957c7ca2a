"""A profile as one HTML file that loads nothing, in the style of the report."""

from __future__ import annotations

import base64
import hashlib

from markupsafe import Markup

from laconic.core import JsonObject
from laconic.report import theme
from laconic.report.files import content, template
from laconic.report.profile_picture import picture
from laconic.report.profiles import headline, notes, shares, totals
from laconic.report.words import count, size

_HEADS = (
    *("parameters", "MACs", "DRAM", "op/byte", "roofline ms", "ms", "energy share"),
    *("activations", "kept", "backward MACs", "nonzero", "bits"),
)


def profile_page(found: JsonObject) -> str:
    """The page of a profile; the same profile gives the same bytes."""
    script = content("sort.js")
    page = template("profile.html.j2").render(
        model=found["model"],
        headline=headline(found),
        target=found["target"],
        inputs=", ".join(f"{name} {'x'.join(map(str, x['shape']))}" for name, x in found["inputs"].items()),
        note=found["note"],
        notes=notes(found),
        facts=totals(found),
        machine=found["machine"]["processor"],
        heads=_HEADS,
        layers=_cells(found),
        picture=Markup(picture(found, 900)),
        picture_narrow=Markup(picture(found, 420)),
        light=Markup(theme.variables(theme.LIGHT)),
        dark=Markup(theme.variables(theme.DARK)),
        style=Markup(content("style.css").replace("FONT", theme.FONT)),
        picture_style=Markup(theme.PICTURE + theme.BARS),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return page.encode(errors="replace").decode()  # a path may hold what UTF-8 cannot


def _cells(found: JsonObject) -> list[JsonObject]:
    """A row for each layer: what is shown, and what it is sorted by."""
    spent = shares(found, "energy_pj")
    rows = []
    for row, share in zip(found["layers"], spent, strict=True):
        cells = [
            (count(row["params"]), row["params"]),
            (count(row["macs"]), row["macs"]),
            (size(row["dram_bytes"]), row["dram_bytes"]),
            *(("" if n is None else f"{n:.3g}", n) for n in (row["intensity"], row["bound_ms"], row["time_ms"])),
            (f"{share:.1%}", share),
            (size(row["activations_bytes"]), row["activations_bytes"]),
            (size(row["kept_bytes"]), row["kept_bytes"]),
            (count(row["backward_macs"]), row["backward_macs"]),
            (f"{row['nonzero'] / row['params']:.0%}" if row["nonzero"] is not None and row["params"] else "", None),
            (f"{row['bits']:g}" if row["params"] else "", None),
        ]
        shown = [{"words": "" if words in ("0", "0 B") else words, "value": value} for words, value in cells]
        rows.append({"name": row["name"] or "(model)", "type": row["type"], "cells": shown})
    return rows
