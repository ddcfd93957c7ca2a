"""What the benchmarks make of their measurements: who is the best peer, by how much it was beaten, at least, and what
the tables say of a record."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks import cifar, cluster, mnist, mnist_records, peers, records, tables, tables_packing, tables_quantization
from benchmarks.__main__ import ALL
from benchmarks.criteria import _recipes
from benchmarks.mixed import Bench
from benchmarks.networks import NETWORKS
from benchmarks.peers import _real, _stored
from benchmarks.quantization import less, summary
from laconic.core import Recipe
from laconic.measure.latency import Paired
from laconic.steps.cluster.kmeans import Cluster
from laconic.steps.prune.channels import ChannelCriterion
from laconic.steps.prune.heads import HeadCriterion
from laconic.steps.quantize.epr import EPR
from tests.networks import network, task_for


def test_less_is_paired_and_its_bound_exact() -> None:
    peer, mine = np.ones(1000), np.ones(1000)
    peer[:20], mine[15:25] = 0, 0  # lost 20..24, won 0..14
    found = less(mine, peer)
    assert (found["lost"], found["won"]) == (5, 15)
    assert found["difference"] == pytest.approx(0.01)
    assert 0 < found["difference_low"] < 0.005
    assert found["p_no_better"] == pytest.approx(binom.sf(14, 20, 0.5))
    assert less(peer, mine)["difference_low"] < -0.01


def test_less_of_means_over_draws_is_known_better_than_of_one_draw() -> None:
    rng = np.random.default_rng(0)
    draws = (rng.random((2, 5, 1000)) > 0.01).astype(float)  # two quantizers that are as good
    one, mean = less(*draws[:, 0]), less(*draws.mean(1))
    assert mean["difference"] == pytest.approx(draws[0].mean() - draws[1].mean())
    assert one["difference_low"] < mean["difference_low"] < mean["difference"]
    assert mean["won"] == int((draws[0].mean(0) > draws[1].mean(0)).sum())


def test_summary_is_of_the_best_and_of_the_fastest_peer() -> None:
    def peer(name: str, agreement: float, over: float) -> dict[str, object]:
        gap = {"difference": 0.9 - agreement}
        return {"name": name, "agreement": agreement, "laconic_less_peer": gap, "laconic_over_peer": {"value": over}}

    keys = ("network", "target", "n", "top1", "file_bytes", "speed_to_float", "seconds")
    mine = {"name": "laconic", "agreement": 0.9, **dict.fromkeys(keys)}
    broken = {"name": "broken", "failed": "Error: no"}
    (found,) = summary([mine, peer("best", 0.95, 1.2), peer("fastest", 0.8, 0.98), broken])
    assert (found["best_peer"], found["fastest_peer"]) == ("best", "fastest")
    assert found["difference"] == pytest.approx(-0.05)
    assert found["laconic_over_peer"]["value"] == 0.98
    assert summary([mine, broken]) == []


def test_files_close_in_speed_are_opened_anew_and_their_medians_make_the_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ratios, opened = iter(np.linspace(0.9, 1.1, peers.OPENINGS)), []

    def paired(baseline: object, candidate: object, inputs: object, rounds: int) -> object:
        luck = np.full(rounds, next(ratios))  # one session's, in all of its rounds
        return Paired(luck, luck, luck, luck, luck, 1)

    monkeypatch.setattr(peers.measure, "paired", paired)
    found = peers.ratio_anew(lambda: opened.append("peer"), lambda: opened.append("mine"), {})  # type: ignore[arg-type, return-value, func-returns-value]
    assert opened == ["peer", "mine"] * peers.OPENINGS
    assert found["value"] == pytest.approx(1.0)
    assert 0.9 < found["low"] < 0.99
    assert 1.01 < found["high"] < 1.1
    assert not found["noisy"]


@pytest.mark.parametrize(
    ("name", "heads", "criteria", "recoveries"),
    [
        ("plain", False, get_args(ChannelCriterion), {"none", "batch_norm", "least_squares"}),
        ("mlp", False, set(get_args(ChannelCriterion)) - {"bn_scale"}, {"none", "least_squares"}),
        ("attention", True, get_args(HeadCriterion), {"none", "least_squares"}),
    ],
)
def test_a_network_is_pruned_by_the_criteria_that_make_sense_for_it(
    name: str, heads: bool, criteria: Collection[str], recoveries: set[str]
) -> None:
    recipes = [one.to_json() for one in _recipes(network(name), 0.5)]
    structured = [steps for steps in recipes if steps[-1]["step"] == "PruneChannels"]
    assert {len(steps) for steps in structured} == {1 + heads}
    assert {steps[-1].get("criterion", "l2") for steps in structured} == set(criteria)
    assert {steps[-1].get("recovery", "none") for steps in structured} == recoveries
    if heads:
        assert all({**steps[0], "step": ""} == {**steps[1], "step": ""} for steps in structured)


def test_the_smallest_file_is_that_of_each_network_within_a_point(monkeypatch: pytest.MonkeyPatch) -> None:
    def row(name: str, size: int, search: float, holdout: float) -> dict[str, object]:
        sizes = {"packed_bytes": size, "ratio": 1e6 / size, "n": 400, "n_holdout": 300, "seconds": 1.0}
        return {"network": name, **sizes, "search_drop": search, "drop": holdout}

    rows = [row("a", 200_000, 0.0, 0.0), row("a", 100_000, 0.0, 0.013), row("a", 50_000, 0.0, 0.014)]
    machine = {"processor": "p", "architecture": "a", "cores": 2}
    record = {"rows": [*rows, row("b", 1000, 0.5, 0.5)], "date": "d", "machine": machine, "libraries": {}}
    monkeypatch.setattr(records, "read", lambda name: record)
    lines = tables_packing.smallest().splitlines()
    assert lines[2] == "| a | 1.00 MB → 100 kB | **10.0x** | 0.97 | 400 | 1 |"
    assert lines[3] == ""


def test_foreign_integers_are_the_codes_of_their_scale_and_zero_point() -> None:
    tensor = {"quantization": (0.5, -3), "dtype": np.int8}
    x = np.array([[-100.0, -1.0, 0.0, 0.8, 100.0]], np.float32)
    assert _stored(x, tensor).tolist() == [[-128, -5, -3, -1, 127]]
    assert _real(_stored(x, tensor), tensor).tolist() == [[-62.5, -1.0, 0.0, 1.0, 65.0]]
    assert _stored(x, {"quantization": (0.0, 0), "dtype": np.float32}).dtype == np.float32


def test_a_mixed_file_is_of_the_least_damage_and_no_larger_than_the_uniform_one() -> None:
    bench = object.__new__(Bench)  # without a network: files are as large as is counted, and 30 bytes
    bench.params, bench.once = {"a": 1000.0, "b": 400.0, "c": 100.0}, dict.fromkeys((2, 4, 8), 0.0)
    bench.cost = {name: {bits: n * bits / 8 for bits in (2, 4, 8)} for name, n in bench.params.items()}
    a, b, c = {2: 0.1, 4: 0.0, 8: 0.0}, {2: 9.0, 4: 1.0, 8: 0.0}, {2: 2.0, 4: 0.5, 8: 0.0}
    bench.damage = {4: {"a": a, "b": b, "c": c}}
    asked: list[dict[str, int]] = []

    def file(bits: dict[str, int]) -> dict[str, object]:
        asked.append(bits)
        size = sum(bench.cost[name][b] for name, b in bits.items()) + 30 * (len(asked) == 1)
        return {"file_bytes": size, "bits": bits}

    bench._file = file  # type: ignore[method-assign, assignment]
    most = 1500 * 4 // 8
    found = bench._fitted(4, most)
    assert found["bits"] == asked[-1]
    assert found["file_bytes"] <= most
    assert asked == [{"a": 2, "b": 8, "c": 8}, {"a": 2, "b": 8, "c": 4}]


def test_the_table_says_where_the_uniform_file_is_the_best_of_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def row(name: str, bits: dict[str, int]) -> dict[str, object]:
        uniform = {"file_bytes": 2000, "agreement": 0.9, "bits": {"a": 3, "b": 3}}
        mixed = {"file_bytes": 1990, "agreement": 0.95, "bits": bits, "layers": {"2": 1, "8": 1}}
        gain = {"difference": 0.05, "difference_low": -0.001}
        return {"network": name, "n": 1000, "width": 3, "uniform": uniform, "mixed": mixed, **gain}

    rows = [row("one", {"a": 2, "b": 8}), row("other", {"a": 3, "b": 3})]
    machine = {"processor": "p", "architecture": "a", "cores": 2}
    first, second, third, *_ = NETWORKS
    record = {"rows": rows, "recipe": [], "skipped": {second: "no data"}, "networks": {first: {}}}
    record |= {"date": "d", "machine": machine, "libraries": {}}
    monkeypatch.setattr(records, "read", lambda name: record)
    text = tables_quantization.mixed()
    assert f"Not run: {second}: no data. Not run yet: {third}" in text
    one, other = text.splitlines()[2:4]
    assert "**95.00%**" in one
    assert "5.00 (at least -0.10)" in one
    assert "the same" in other
    assert "5.00" not in other


def test_every_benchmark_is_listed() -> None:
    folder = Path(records.__file__).parent
    modules = [import_module(f"benchmarks.{path.stem}") for path in folder.glob("*.py") if path.stem[0] != "_"]
    found = [m for m in modules if hasattr(m, "main") and inspect.signature(m.main).parameters]
    assert sorted(one.__name__.removeprefix("benchmarks.") for one in found) == sorted(ALL)


def test_shared_weights_without_their_checkpoints_are_skipped_and_the_record_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: dict[str, Recipe | str] = {"1 bit": Recipe((Cluster(bits=1),)), "trained": "no-such-checkpoint"}
    small = cluster.Network("small", lambda: (network("plain"), task_for("plain")), lambda task: [task.holdout], rows)
    absent = cluster.Network("big", lambda: (cifar.trained("none")[0], cifar.load()), lambda task: [], rows)
    monkeypatch.setattr(cluster, "NETWORKS", [absent, small])
    found = cluster.main(tmp_path)
    (row,) = found["rows"]
    assert (row["network"], row["name"], row["n"]) == ("small", "1 bit", len(task_for("plain").holdout))
    assert row["drop"] == pytest.approx(row["top1_float"] - row["top1"])
    assert row["opened_by_openvino_error"] < 1e-5
    assert list(found["skipped"]) == ["big", "small, trained"]
    assert "no-such-checkpoint.safetensors is not there" in found["skipped"]["small, trained"]
    assert json.loads((tmp_path / "cluster.json").read_text())["skipped"] == found["skipped"]
    monkeypatch.setattr(cluster, "NETWORKS", [absent])
    with pytest.raises(records.Skipped, match="is not there"):
        cluster.main(tmp_path / "nothing is written")


def test_the_table_of_shared_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"network": "net", "name": "4 bits", "n": 7872, "top1_float": 0.914, "top1": 0.90312, "drop": 0.01088}
    row |= {"drop_at_most": 0.013301, "bits_per_weight": [4.04, 5.5], "file_bytes": 150_000}
    row |= {"file_bytes_float": 1_080_000, "training": {"recipe": [{"step": "Cluster", "epochs": 0.0}]}}
    record: dict[str, Any] = {"rows": [row], "skipped": {"big": "no data"}, "published": cluster.PUBLISHED}
    machine = {"processor": "P", "architecture": "A", "cores": 2}
    record |= {"date": "2026-01-01", "machine": machine, "libraries": {"onnxruntime": "1"}}
    monkeypatch.setattr(records, "read", lambda name: record if name == "cluster" else None)
    table = tables.TABLES["cluster"]().splitlines()
    assert table[2] == "| net | 4 bits | 91.40% → 90.31% | 1.09 | 1.34 | 1.08 MB → 150 kB | 4.0 to 5.5 | 7,872 | no |"
    assert "70.98% → 69.40%, 1.58 points" in table[4]
    assert "Published, not run here" in table[4]
    assert table[4].endswith("Not run: big: no data.")


def _mnist_row(name: str, price: float) -> mnist_records.Row:
    recipe = Recipe((EPR(price=price, epochs=1, batch=32, distill=0.0),))
    return mnist_records.Row("free", name, lambda: network("mlp"), recipe, 10_000, 1.0)


def test_a_procedure_of_mnist_scores_what_the_packed_file_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist, "taught", lambda copies: task_for("mlp"))
    run = mnist_records.procedure(_mnist_row("one", 0.1), 0)
    assert run["payload_bytes"] < run["packed_bytes"] < run["file_bytes"]
    assert run["payload_bytes"] > sum(layer["bytes"] for layer in run["layers"]) > 0
    assert run["n"] == {"search": 64, "test": 64}
    assert 0 < run["wrong"]["test"] < 64


def test_a_record_of_mnist_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, int]] = []

    def procedure(row: mnist_records.Row, seed: int) -> dict[str, Any]:
        ran.append((row.name, seed))
        if len(ran) == 3:
            raise KeyboardInterrupt
        return {"name": row.name, "seed": seed}

    monkeypatch.setattr(mnist_records, "procedure", procedure)
    monkeypatch.setattr(mnist_records, "SEEDS", (0, 1))
    monkeypatch.setattr(mnist_records, "ROWS", [_mnist_row("one", 0.1)])
    first = mnist_records.main(tmp_path)
    monkeypatch.setattr(mnist_records, "ROWS", [_mnist_row("one", 0.1), _mnist_row("other", 0.2)])
    with pytest.raises(KeyboardInterrupt):
        mnist_records.main(tmp_path)
    mnist_records.main(tmp_path)
    assert ran == [("one", 0), ("one", 1), ("other", 0), ("other", 0), ("other", 1)]
    assert json.loads((tmp_path / "mnist_records.json").read_text())["runs"][:2] == first["runs"]
    monkeypatch.setattr(mnist_records, "ROWS", [_mnist_row("one", 0.3)])
    mnist_records.main(tmp_path)
    assert ran[5:] == [("one", 0), ("one", 1)], "another price is another procedure"


def test_the_table_of_the_smallest_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(seed: int, payload: int, wrong: int) -> dict[str, Any]:
        said = {"table": "fixed", "name": "net", "seed": seed, "wanted_bytes": 1000, "wanted_error": 0.01}
        sizes = {"payload_bytes": payload, "packed_bytes": payload + 200, "layers": [{"used": 700}, {"used": 40}]}
        return {**said, **sizes, "n": {"search": 5000, "test": 10000}, "wrong": {"search": 1, "test": wrong}}

    machine = {"processor": "P", "architecture": "A", "cores": 2}
    record = {"runs": [run(0, 800, 90), run(1, 1000, 110)], "date": "d", "machine": machine, "libraries": {}}
    monkeypatch.setattr(records, "read", lambda name: record)
    line = tables.TABLES["mnist_fixed"]().splitlines()[2]
    assert line.startswith(
        "| net | 2 | 740 | **900** (800, 1,000) | **1,100** (1,000, 1,200) | **1.00%** (0.90%, 1.10%)"
    )
    assert line.endswith("| 1,000 | 1.00% | yes | **no** |")
    assert "was not run yet" in tables.TABLES["mnist_free"]()
    record["runs"] = [run(0, 800, 90), run(1, 1000, 111)]
    assert tables.TABLES["mnist_fixed"]().splitlines()[2].endswith("| **no** | **no** |")


def test_the_table_of_coverage_counts_and_names_what_did_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    one = {"status": "passed", "params": 100, "params_left": 60, "difference": 3e-7}
    rows = [
        {"name": "timm:a", "laconic": one, "torch_pruning": {"status": "passed"}},
        {"name": "timm:b", "laconic": {"status": "left whole", "left_whole": {"it is mixed": 3}}},
        {"name": "timm:c"},
        {"name": "torchvision:d", "laconic": {"status": "failed", "why": "deploy: it | broke"}},
    ]
    rows[3] |= {"onnx TorchScript": {"status": "pruned"}, "onnx torch.export": {"status": "failed", "why": "load: no"}}
    monkeypatch.setattr(records, "read", lambda name: {"rows": rows} if name == "coverage" else None)
    text = tables.TABLES["coverage"]()
    assert "| timm, a family each | 2 of 3 | 1 | 1 | 0 | 60% | 3e-07 | 1 | 1 | 0 |" in text
    assert "| all | 3 of 4 | 1 | 1 | 1 |" in text
    assert "Not passed: `timm:b` left whole: it is mixed. `torchvision:d` failed: deploy: it / broke." in text
    assert "written by TorchScript: 1 read, 1 agree with torch, 1 were pruned" in text
    assert "0 agree with torch, 0 were pruned and deployed again. Failed: `torchvision:d`: load: no." in text


def test_every_table_stands_on_a_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in tables.PAGES)
    assert set(re.findall(r"<!-- table (\w+) -->", text)) == set(tables.TABLES)
