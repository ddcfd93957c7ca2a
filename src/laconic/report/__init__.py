"""The report of a package or a profile: a page, a picture for a README, the terminal. Pure functions of JSON."""

from laconic.report.page import render
from laconic.report.picture import front_svg
from laconic.report.profile_page import profile_page
from laconic.report.profile_picture import profile_svg
from laconic.report.terminal import print_report

__all__ = ["front_svg", "print_report", "profile_page", "profile_svg", "render"]
