"""The report on a terminal fits it, and says what the page says."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from laconic.report import print_report


def test_it_fits_80_columns(dossier, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    print_report(dossier)
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert max(map(cell_len, lines)) <= 80


def test_it_fits_a_narrower_terminal(dossier, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    print_report(dossier)
    assert max(map(cell_len, capsys.readouterr().out.splitlines())) <= 50


def test_it_says_the_numbers(make_dossier, capsys):
    print_report(make_dossier())
    words = " ".join(capsys.readouterr().out.split())
    for wanted in ("11.4x smaller, 1.68x faster", "certified: top-1 fell by at most 1.29 points at 95 %",
                   "377 kB 33.1 kB", "36.3 µs 21.5 µs", "2.38 M 1.20 M", "lost / won 3 / 0",
                   "1 failed: the worker ran out of memory",
                   "A Processor, x86_64", "aten::mystery x5", "below the floor 2"):  # fmt: skip
        assert wanted in words, wanted


def test_bars_show_what_stayed(make_dossier, capsys):
    print_report(make_dossier())
    row = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("conv2"))
    assert row.count("=") == round(24 * 516_096 / 1_179_648)
    assert row.count("=") + row.split("516 k")[0].count("-") == 24


@pytest.mark.parametrize("name", ["[red]x[/]", "\x1b[31mred", "a\nb"])
def test_names_are_text(make_dossier, capsys, name):
    dossier = make_dossier()
    dossier["model"]["source"] = dossier["baseline"]["layers"][1][0] = name
    print_report(dossier)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert name.replace("\x1b", "\N{REPLACEMENT CHARACTER}").replace("\n", "\N{REPLACEMENT CHARACTER}") in out
