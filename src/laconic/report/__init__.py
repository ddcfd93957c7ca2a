"""The report of a package: a page, a picture for a README, the terminal. Pure functions of a dossier."""

from laconic.report.page import render
from laconic.report.picture import front_svg
from laconic.report.terminal import print_report

__all__ = ["front_svg", "print_report", "render"]
