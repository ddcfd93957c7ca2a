"""Alignment: told by times that are known, and by a runtime."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from laconic.core import Recipe, Target
from laconic.goal import Goal
from laconic.ledger import Ledger
from laconic.models.loaded import LoadedModel
from laconic.story import alignment
from laconic.story.evaluate import Evaluator, Job
from laconic.story.reporter import Reporter
from laconic.story.trials import Trials
from laconic.worker import Worker
from tests.networks import network, task_for


def times(took: Callable[[int], float]) -> dict[str, float]:
    """Of layers through which so many channels take so long."""
    parts = {"first": 0.4, "second": 0.6}
    return {f"{part}.{i}": p * took(width) for part, p in parts.items() for i, width in enumerate(alignment.WIDTHS)}


@pytest.mark.parametrize("step", alignment.ALIGNMENTS)
def test_the_step_of_kernels_that_fill_up(step: int) -> None:
    found = times(lambda width: 0.05 + math.ceil(width / step) * step / 96)
    assert alignment.told_by({**found, "head": 3.0}) == step


def test_some_time_for_each_channel_beside_the_steps() -> None:
    assert alignment.told_by(times(lambda width: 0.1 * width + math.ceil(width / 16) * 16)) == 16
    assert alignment.told_by(times(lambda width: width + math.ceil(width / 16) * 16)) == 1


def test_where_every_channel_counts_there_is_none() -> None:
    assert alignment.told_by(times(lambda width: 5.0 + width)) == 1
    assert alignment.told_by(times(lambda width: 5.0)) == 1
    assert alignment.told_by({"Subgraph": 9.0}) == 1


def evaluator(folder: Path, target: str) -> Evaluator:
    loaded = LoadedModel(module=network("residual"), source="residual", input_names=("input",))
    job = Job(lambda progress: (loaded, task_for("residual")), Target.parse(target), 0, (), folder)
    return Evaluator(job, lambda text, fraction: None)


def test_a_runtime_is_asked_and_what_cannot_be_applied_tells_nothing(tmp_path: Path) -> None:
    asked = evaluator(tmp_path, "onnxruntime")
    row = asked.alignment(Recipe().to_json(), "key")
    assert row["error"] is None
    assert row["alignment"] in (1, *alignment.ALIGNMENTS)
    failing = asked.alignment([{"step": "Quantize", "layers": {"nowhere": 8}}], "key")
    assert failing["alignment"] == 1
    assert "nowhere" in failing["error"]


def test_a_report_knows_it_where_it_was_measured_here_and_the_time_counts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger", {})

    def known(minimize: str = "latency", target: str = "onnxruntime", machine: str = "here") -> int:
        given: list[Any] = [Target.parse(target), {"machine_key": machine}, Goal.parse(minimize), Reporter(), tmp_path]
        return Trials(ledger, cast(Worker, _Measures()), *given).known_alignment

    assert known() == 1
    given: list[Any] = [Target.parse("onnxruntime"), {"machine_key": "here"}, Goal(), Reporter(), tmp_path]
    trials = Trials(ledger, cast(Worker, _Measures()), *given)
    assert trials.alignment(Recipe()) == trials.alignment(Recipe()) == 16
    assert len(ledger.rows) == 2, "measured once"
    assert known() == 16
    assert known("size") == known("macs") == known(target="openvino") == known(machine="elsewhere") == 1


class _Measures:
    def call(self, method: str, recipe: Any, key: str, **options: object) -> dict[str, object]:
        return {"row": "probe", "key": key, "machine": "here", "alignment": 16, "error": None, "seconds": 2.0}
