"""What few bits are stored at and computed in is told wherever a result is, and no speed is laid to a format without a
kernel."""

from __future__ import annotations

import re

from laconic.report import print_report, render
from laconic.report.words import faster, formats, only_stored

SHORT = {"stored_bits": 4, "computed": "float32", "layers": 12}
KERNEL = {"stored_bits": 4, "computed": "4-bit weights", "layers": 3}
FLOAT = {"stored_bits": 32, "computed": "float32", "layers": 1}
KEPT = {"stored_bits": 32, "computed": "float32", "layers": 5, "rounded": True}
TOLD = "12 layers stored at 4 bit, computed in float32"


def test_words():
    assert formats([SHORT, KERNEL, FLOAT]) == [
        f"{TOLD}: the runtime has no kernel for this format, which makes the file smaller and nothing faster.",
        "3 layers stored at 4 bit, computed in 4-bit weights.",
    ]
    assert formats([KEPT]) == [
        "5 layers of few values stored and computed in float32: this runtime's files know no less."
    ]
    assert [only_stored(rows) for rows in ([SHORT], [SHORT, FLOAT], [KEPT], [SHORT, KERNEL], [FLOAT], [])] == [
        *(True, True, True, False, False, False)
    ]


def stored(make_dossier, only):
    """The dossier of a winner that was timed at 1.68x."""
    found = make_dossier()
    found["best"]["computed"] = [SHORT]
    found["ratio"]["only_stored"] = only
    for trial in found["trials"]:
        if trial["chosen"]:
            trial.update(computed=[SHORT], only_stored=only)
    return found


def test_no_speed_is_told_of_what_is_only_stored(make_dossier, capsys):
    found = stored(make_dossier, only=True)
    assert faster(found["ratio"]) == "computed in float32"
    print_report(found)
    terminal, page = " ".join(capsys.readouterr().out.split()), render(found)
    for text in (terminal, page):
        assert TOLD in text
        assert "smaller, computed in float32" in text
        assert "1.68x" not in text
    (row,) = re.findall(r'<tr id="trial-\d+" class="chosen">.*?</tr>', page)
    assert TOLD in row
    assert ">float32<" in row


def test_what_else_was_done_has_its_speed(make_dossier, capsys):
    found = stored(make_dossier, only=False)
    print_report(found)
    terminal, page = " ".join(capsys.readouterr().out.split()), render(found)
    for text in (terminal, page):
        assert TOLD in text
        assert "1.68x faster" in text


def test_warnings_and_what_was_left_in_float(make_dossier, capsys):
    found = make_dossier()
    found["facts"] = [{} for _ in found["recipe"]]
    found["facts"][-1] = {"warnings": ["calibrated on one sample: the ranges of a, b are unreliable"]}
    found["facts"][-1]["left_in_float"] = ["block/gelu#0"]
    step = found["recipe"][-1]["step"]
    print_report(found)
    terminal, page = " ".join(capsys.readouterr().out.split()), render(found)
    for text in (terminal, page):
        assert f"{step}: calibrated on one sample: the ranges of a, b are unreliable." in text
        assert f"{step} left in float: block/gelu#0." in text
