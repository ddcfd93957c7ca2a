"""Goals are read from words, and what cannot be read is refused with an example."""

from __future__ import annotations

import pytest

from laconic.errors import GoalError
from laconic.goal import Budget, Goal, Limit, percent


@pytest.mark.parametrize(
    ("text", "seconds", "trials"),
    [
        ("10m", 600, None),
        ("90s", 90, None),
        ("1.5h", 5400, None),
        (".5m", 30, None),
        ("40trials", None, 40),
        ("1 trial", None, 1),
        ("0", None, 0),
        (" 0 ", None, 0),
    ],
)
def test_budgets(text: str, seconds: float | None, trials: int | None) -> None:
    assert Budget.parse(text) == Budget(seconds, trials)


@pytest.mark.parametrize("text", ["", "10", "-5m", "5 minutes", "2.5trials", "m", "10m 5s", "0.0", "10x", "1e3s"])
def test_budgets_that_cannot_be_read(text: str) -> None:
    with pytest.raises(GoalError, match=r"a budget that cannot be read: got .*, wanted for example 10m"):
        Budget.parse(text)


@pytest.mark.parametrize(
    ("options", "name", "value", "relative"),
    [
        ({"max_latency": "5ms"}, "max_latency", 5.0, False),
        ({"max_latency": "250us"}, "max_latency", 0.25, False),
        ({"max_latency": "0.5s"}, "max_latency", 500.0, False),
        ({"max_latency": "60%"}, "max_latency", 0.6, True),
        ({"max_size": "1MB"}, "max_size", 1e6, False),
        ({"max_size": "1MiB"}, "max_size", 2.0**20, False),
        ({"max_size": "300 kB"}, "max_size", 3e5, False),
        ({"max_size": "25%"}, "max_size", 0.25, True),
    ],
)
def test_limits(options: dict[str, str], name: str, value: float, relative: bool) -> None:
    limit = getattr(Goal.parse(**options), name)
    assert limit == Limit(pytest.approx(value), relative)
    assert limit.against(200.0) == pytest.approx(value * 200 if relative else value)


@pytest.mark.parametrize("text", ["5", "0ms", "0%", "-5ms", "5MB", "five ms", "5ms!", "%"])
def test_limits_that_cannot_be_read(text: str) -> None:
    with pytest.raises(GoalError, match=r"a limit that cannot be read: got .*, wanted for example 5ms or 60%"):
        Goal.parse(max_latency=text)


def test_goals() -> None:
    assert Goal.parse() == Goal()
    assert Goal.parse("size", "1%rel", "99%", budget="5m") == Goal("size", 0.01, True, 0.99, budget=Budget(300))
    assert Goal.parse(max_drop="0.5%").max_drop == pytest.approx(0.005)
    assert percent("95%", "--confidence") == 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minimize": "speed"}, "unknown objective: got 'speed', wanted latency, size or macs"),
        ({"max_drop": "0%"}, "a floor out of range: got 0.0"),
        ({"max_drop": "100%"}, "a floor out of range: got 1.0"),
        ({"max_drop": "0.01"}, "--max-drop cannot be read: got '0.01', wanted a percentage"),
        ({"max_drop": "rel"}, "--max-drop cannot be read"),
        ({"confidence": "100%"}, "a confidence out of range"),
        ({"confidence": "49%"}, "a confidence out of range"),
        ({"confidence": "0.95"}, "--confidence cannot be read"),
    ],
)
def test_goals_that_make_no_sense(options: dict[str, str], message: str) -> None:
    with pytest.raises(GoalError, match=message):
        Goal.parse(**options)
