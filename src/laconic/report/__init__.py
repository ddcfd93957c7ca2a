"""The report of a package: a page, a picture for a README, the terminal. Pure functions of a dossier."""

from laconic.report.page import render
from laconic.report.picture import front_svg

__all__ = ["front_svg", "render"]
