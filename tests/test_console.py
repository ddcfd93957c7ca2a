"""What people see while they wait: whole lines in a file, one moving line on a terminal, nothing on standard output."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from laconic import console
from laconic.console import ConsoleReporter
from laconic.core import Measurement, Recipe, Target, Trial
from laconic.steps import STEPS

LONG = "a note that is longer than any terminal " * 5


def trial(*steps: Any, error: str | None = None, rejected: str | None = None, **values: float) -> Trial:
    found = {name: Measurement(name, "", v, v, v, 1, "measured") for name, v in values.items()}
    recipe = Recipe(steps)
    return Trial(recipe.key, recipe, Target("onnxruntime"), (), found, error=error, rejected=rejected)


QUANTIZED = trial(STEPS["Quantize"](), file_bytes=31_300.0, speedup=2.25, drop=0.0123)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Any:
    """Tell a reporter something on a standard error that is no terminal; what was written there."""

    def tell(*calls: tuple[str, tuple[Any, ...]]) -> str:
        with ConsoleReporter() as reporter:
            for name, arguments in calls:
                getattr(reporter, name)(*arguments)
        said = capsys.readouterr()
        assert said.out == ""
        return said.err

    return tell


def test_notes_are_whole_and_nothing_else_is_written(told: Any) -> None:
    assert told() == ""
    assert told(("note", (LONG,))) == LONG + "\n"


def test_what_looks_like_markup_is_text(told: Any) -> None:
    assert told(("note", ("[red]layer[0]",))) == "[red]layer[0]\n"


def test_a_trial_is_told_once(told: Any) -> None:
    said = told(("tried", (QUANTIZED,)), ("tried", (QUANTIZED,)), ("tried", (trial(file_bytes=1.0),)))
    assert said == "  1    31.3 kB  2.25x drop +1.23%  Quantize\n"


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (trial(STEPS["Quantize"](), error="it does not load"), "failed: it does not load"),
        (trial(STEPS["Quantize"](), rejected="its drop was clear", file_bytes=1.0), "rejected early"),
        (trial(STEPS["Quantize"](), rejected="noisy", file_bytes=1.0, speedup=1.0, drop=-0.01), "drop -1.00% (noisy)"),
        (trial(STEPS["Quantize"](), file_bytes=1.0, drop=0.0), "drop +0.00%"),
    ],
)
def test_what_became_of_a_trial(told: Any, made: Trial, words: str) -> None:
    assert words in told(("tried", (made,)))


def test_progress_is_for_terminals(told: Any) -> None:
    assert told(("trying", ("Quantize", 60.0, None)), ("progress", ("scoring", 0.5)), ("best", (QUANTIZED,))) == ""


def moving(reporter: ConsoleReporter) -> str:
    (task,) = reporter._progress.tasks
    return f"{task.description} {task.fields['rest']}"


def test_the_moving_line() -> None:
    reporter = ConsoleReporter()
    reporter.trying("Quantize [x]", 61.5, None)
    assert "Quantize \\[x] 1:0" in moving(reporter)
    reporter.best(QUANTIZED)
    reporter.progress("scoring", 0.5)
    assert "scoring best 2.25x, 31.3 kB, 1:0" in moving(reporter)
    reporter.trying("again", None, 7)
    assert "7 trials left" in moving(reporter)
    reporter.trying("late", -5.0, None)
    assert "0:00 left" in moving(reporter)


def on_terminal(width: int) -> tuple[ConsoleReporter, io.StringIO]:
    screen = io.StringIO()
    reporter = ConsoleReporter()
    reporter.console = Console(file=screen, force_terminal=True, width=width, color_system=None, highlight=False)
    reporter._progress.live.console = reporter.console
    return reporter, screen


def test_on_a_terminal_notes_wrap_and_trials_take_one_line() -> None:
    reporter, screen = on_terminal(40)
    reporter.note(LONG)
    lines = screen.getvalue().splitlines()
    assert len(lines) > 4
    assert " ".join(" ".join(lines).split()) == LONG.strip()
    reporter, screen = on_terminal(40)
    reporter.tried(trial(STEPS["PruneChannels"](layers={f"layer{i}": 0.5 for i in range(9)}), file_bytes=9.0, drop=0.0))
    (line,) = screen.getvalue().splitlines()
    assert len(line) <= 40
    assert line.endswith("…")


def test_tables_and_lines_go_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    console.table("a title", ["name", "value"], [["[x]", "1"], ["y", "2"]])
    console.say(LONG)
    said = capsys.readouterr()
    assert said.err == ""
    assert "[x]" in said.out
    assert LONG.strip() in said.out


def test_no_speed_is_told_of_weights_that_are_only_stored_short(told: Any) -> None:
    stored = replace(trial(STEPS["Ternary"](), file_bytes=9_000.0, speedup=2.25, drop=0.01), only_stored=True)
    assert told(("tried", (stored,))).startswith("  1    9.00 kB   fp32 drop +1.00%")
