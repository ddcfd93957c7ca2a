"""The machine in words: what latencies belong to, and nothing that names the machine."""

from __future__ import annotations

import json
import os
import platform
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from laconic import machine

INTEL = (
    "processor\t: 0\nmodel name\t: Fast One\nflags\t\t: fpu avx2 avx512f avx512_vnni\n\nprocessor\t: 1\nflags\t: fpu\n"
)
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd asimddp i8mm\n"


@pytest.fixture
def cpuinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str | None], None]]:
    def pretend(text: str | None) -> None:
        if text is not None:
            (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(machine, "Path", lambda path: tmp_path / "cpuinfo")
        machine._cpuinfo.cache_clear()
        machine.cpu_flags.cache_clear()

    machine._cpuinfo.cache_clear()
    machine.cpu_flags.cache_clear()
    yield pretend
    machine._cpuinfo.cache_clear()
    machine.cpu_flags.cache_clear()


def test_flags_of_the_first_processor(cpuinfo: Callable[[str | None], None]) -> None:
    cpuinfo(INTEL)
    assert machine.cpu_flags() == {"avx2", "avx512f", "avx512_vnni"}
    assert machine.describe()["processor"] == "Fast One"


def test_flags_of_arm(cpuinfo: Callable[[str | None], None]) -> None:
    cpuinfo(ARM)
    assert machine.cpu_flags() == {"asimddp", "i8mm"}


def test_a_system_that_does_not_tell(cpuinfo: Callable[[str | None], None], monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo(None)
    monkeypatch.setattr(machine.sys, "platform", "other")
    assert machine.cpu_flags() == frozenset()
    assert machine.describe()["processor"]


def test_a_mac(cpuinfo: Callable[[str | None], None], monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo(None)
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    said = {"machdep.cpu.brand_string": "Apple M9", "hw.optional.arm.FEAT_DotProd": "1"}
    monkeypatch.setattr(machine, "_sysctl", lambda name: said.get(name, ""))
    assert machine.cpu_flags() == {"asimddp"}
    assert machine.describe()["processor"] == "Apple M9"


def test_the_description_is_json_and_names_nobody() -> None:
    found = machine.describe()
    text = json.dumps(found)
    assert found["cores"] >= 1
    assert found["memory_gib"] > 0
    assert set(found["features"]) <= set(machine.FEATURES)
    assert socket.gethostname() not in text or len(socket.gethostname()) < 4
    assert platform.release() not in text or "-" not in platform.release()


def test_cores_are_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert machine.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert machine.cores() == 7


@pytest.mark.parametrize(
    ("name", "value", "same"),
    [
        ("system", "Linux 99", True),
        ("python", "3.99", True),
        ("processor", "another", False),
        ("features", ["amx_int8"], False),
        ("cores", 128, False),
        ("memory_gib", 1.0, False),
    ],
)
def test_the_fingerprint_is_of_what_latency_depends_on(
    monkeypatch: pytest.MonkeyPatch, name: str, value: Any, same: bool
) -> None:
    described = machine.describe()
    before = machine.fingerprint()
    monkeypatch.setattr(machine, "describe", lambda: {**described, name: value})
    assert (machine.fingerprint() == before) is same
