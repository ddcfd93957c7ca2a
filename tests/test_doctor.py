"""What doctor tells: what is there, what a missing extra would give, every step, what the processor can do."""

from __future__ import annotations

import importlib.metadata
from dataclasses import fields

import pytest

from laconic import __version__, doctor, machine
from laconic.runtime import RUNTIMES
from laconic.steps import STEPS
from tests.stories import laconic


def test_for_programs() -> None:
    said = laconic("doctor", "--json")
    assert (said.code, said.err) == (0, "")
    found = said.json
    assert found["laconic"] == __version__
    assert found["installed"]["torch"] == importlib.metadata.version("torch")
    assert set(found["extras"]) == {"openvino", "litert", "executorch", "tensorrt", "torchvision", "timm", "parquet"}
    assert set(found["targets"]) == set(RUNTIMES)
    assert set(found["steps"]) == set(STEPS)
    assert set(found["features"]) == set(machine.FEATURES)
    assert {flag for flag, has in found["features"].items() if has} == set(machine.cpu_flags())
    for name, step in STEPS.items():
        assert set(found["steps"][name]) == {f.name for f in fields(step)}  # type: ignore[arg-type]
    assert found["targets"]["torch"]["integer_operators"] == []
    assert found["targets"]["tensorrt"]["devices"] == ["cuda"]
    assert found["targets"]["openvino"]["weight_kernels"] == [2, 4, 8]
    assert "conv" in found["targets"]["onnxruntime"]["integer_operators"]


def test_every_extra_of_the_project_is_told() -> None:
    requires = importlib.metadata.requires("laconic") or []
    named = {line.rpartition('extra == "')[2].rstrip('"').rstrip("'") for line in requires if "extra ==" in line}
    named = {name.rpartition("'")[2] for name in named}
    assert named - {"all", "bench", "dev"} == set(doctor.EXTRAS)
    for extra, (distribution, gives) in doctor.EXTRAS.items():
        assert any(line.startswith(distribution) and extra in line for line in requires), extra
        assert gives


def test_for_people() -> None:
    words = " ".join(laconic("doctor").out.split())
    assert f"laconic {__version__}" in words
    for part in ("AVX-512 VNNI", "onnxruntime:cpu", "PruneChannels", "bias_correction=True", "GiB"):
        assert part in words


def test_a_missing_extra_says_what_it_would_give(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name == "openvino":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    assert laconic("doctor", "--json").json["extras"]["openvino"]["version"] is None
    words = " ".join(laconic("doctor").out.split())
    assert "pip install" in words
    assert "'laconic[openvino]'" in words
    assert "fastest on Intel processors" in words


def test_it_works_where_an_optional_runtime_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    assert laconic("doctor").code == 0
