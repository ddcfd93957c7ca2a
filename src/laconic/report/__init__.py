"""The report of a package: one self-contained HTML file."""

from laconic.core import JsonObject


def render(dossier: JsonObject) -> str:
    return "<html></html>"
