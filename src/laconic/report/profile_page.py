"""A profile as one HTML file that loads nothing, in the style of the report."""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib import resources

import jinja2
from markupsafe import Markup

from laconic.core import JsonObject
from laconic.report import theme
from laconic.report.profile_picture import picture
from laconic.report.profiles import headline, notes, shares, totals
from laconic.report.words import count, size

_HEADS = (
    *("parameters", "MACs", "DRAM", "op/byte", "roofline ms", "ms", "energy share"),
    *("activations", "kept", "backward MACs", "nonzero", "bits"),
)


def profile_page(found: JsonObject) -> str:
    """The page of a profile; the same profile gives the same bytes."""
    script = _read("sort.js")
    page = _template().render(
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
        style=Markup(_read("style.css").replace("FONT", theme.FONT)),
        picture_style=Markup(theme.PICTURE + theme.BARS),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return page.encode(errors="replace").decode()  # a path may hold what UTF-8 cannot


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(_read("profile.html.j2"))


@functools.cache
def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


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
