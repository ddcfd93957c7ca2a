"""INT8 on every network of :mod:`benchmarks.networks`: laconic beside the quantizers of the runtimes' own makers.

One recipe for all networks, nothing is searched and nothing is trained: so search and holdout are both unseen, and
every file is compared with the float one on all of their samples. The same calibration samples for everybody, one
thread, batch 1, timings in turns (peer, laconic, peer), laconic's and a peer's file opened anew many times.

A thousand samples tell two good files apart only roughly, and which is better depends on the calibration samples. So
where there are enough of these, everybody quantizes again with others (``draws``), and a sample's record is the share
of a quantizer's files that agree with the float one on it. The first draw's files are those that are timed.

``python -m benchmarks.quantization NAME ...`` runs the networks whose names hold one of these words again; the rows of
all others stay in the record.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from benchmarks import peers, records
from benchmarks.networks import NETWORKS, Network, in_order
from laconic import proof
from laconic.core import Array, Context, JsonObject, Predictor, Recipe, Target, Task
from laconic.errors import MissingExtraError
from laconic.runtime import runtime_of
from laconic.steps.quantize.gptq import GPTQ
from laconic.steps.quantize.post_training import Quantize
from laconic.steps.quantize.smooth import Smooth

RECIPE = Recipe((Smooth(), Quantize(), GPTQ()))
RUNTIMES = ("onnxruntime", "openvino", "litert")
CONFIDENCE = 0.95
MINE = "laconic"


def main(folder: Path | None, words: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run the benchmark; what was found so far is written after each network."""
    found: dict[str, Any] = {"recipe": RECIPE.to_json(), "skipped": {}, "summary": [], "rows": []}
    kept = records.read("quantization") if words else {}
    if kept and kept["recipe"] == found["recipe"]:
        found |= {key: kept[key] for key in found}
    for name, network in records.opened(NETWORKS, words, found["skipped"]):
        rows = [list(_rows(name, network, runtime)) for runtime in RUNTIMES]
        made = {
            "rows": [row for part in rows for row in part],
            "summary": [row for part in rows for row in summary(part)],
        }
        for key, new in made.items():
            found[key] = in_order([row for row in found[key] if row["network"] != name] + new)
        if folder is not None:
            records.write(folder, "quantization", found)
    return found


def summary(rows: list[JsonObject]) -> list[JsonObject]:
    """Of one network on one runtime: laconic's agreement less that of the peer that agrees most, and laconic's speed
    over the fastest peer's; nothing where no peer could be compared."""
    compared = [row for row in rows if "laconic_less_peer" in row]
    if not compared:
        return []
    best = max(compared, key=lambda row: row["agreement"])
    fastest = min(compared, key=lambda row: row["laconic_over_peer"]["value"])
    mine = next(row for row in rows if row["name"] == MINE)
    keys = ("network", "target", "n", "agreement", "top1", "file_bytes", "speed_to_float", "seconds")
    return [
        {key: mine[key] for key in keys}
        | {"best_peer": best["name"], "best_peer_agreement": best["agreement"], **best["laconic_less_peer"]}
        | {"fastest_peer": fastest["name"], "laconic_over_peer": fastest["laconic_over_peer"]}
    ]


def _rows(name: str, network: Network, runtime: str) -> Iterator[JsonObject]:
    """float32, laconic, and every peer of the runtime."""
    if runtime == "litert" and network.tflite is None:
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        try:
            baseline = _float(network, runtime, work)
            mine, seconds = _deployed(network, network.task, runtime, work)
        except MissingExtraError as reason:
            print(f"{name}: {runtime} skipped: {reason}", flush=True)
            return
        makers: peers.Makers = {MINE: lambda: mine}
        if runtime == "litert":
            makers[peers.MLPERF] = lambda: network.tflite or Path()
        else:
            transformer = name.startswith("transformer")
            makers |= peers.quantizers(runtime, baseline, network.task, work, transformer)
        further = {} if runtime == "litert" else _drawn(network, runtime, baseline, work)
        for row in _compared(network, runtime, baseline, makers, further):
            said = {"network": name, "target": runtime, **row, **({"seconds": seconds} if row["name"] == MINE else {})}
            print(said, flush=True)
            yield said


def _float(network: Network, runtime: str, work: Path) -> Path:
    target, opener = Target(runtime), runtime_of(Target(runtime))
    path = work / f"float{opener.SUFFIX}"
    opener.deploy(network.loaded.module, network.task.train.read(range(8)).inputs, path, target)
    return path


def _deployed(network: Network, task: Task, runtime: str, work: Path) -> tuple[Path, float]:
    """Laconic's file, calibrated on ``task``, and the seconds that it took."""
    target, opener = Target(runtime), runtime_of(Target(runtime))
    path, began = work / f"laconic{opener.SUFFIX}", time.monotonic()
    model, _ = RECIPE.apply(network.loaded.module, task, Context(opener.traits(target)))
    opener.deploy(model, task.train.read(range(8)).inputs, path, target)
    return path, round(time.monotonic() - began, 1)


def _drawn(network: Network, runtime: str, baseline: Path, work: Path) -> dict[str, list[Array]]:
    """By quantizer, where its files of the further draws agree with the float file; without those that failed."""
    found: dict[str, list[Array]] = {}
    opener, target, splits = runtime_of(Target(runtime)), Target(runtime), (network.task.search, network.task.holdout)
    wanted = peers.decisions(opener.open_file(baseline, target), splits, network.task)
    for number, task in enumerate(network.draws):
        folder = work / str(number)
        folder.mkdir()
        mine = _deployed(network, task, runtime, folder)[0]
        makers = {MINE: lambda mine=mine: mine} | peers.quantizers(runtime, baseline, task, folder)
        for name, make in makers.items():
            try:
                session = opener.open_file(make(), target)
            except Exception:  # it failed at the first draw too, or is compared with fewer files
                if name == MINE:
                    raise
                continue
            found.setdefault(name, []).append((peers.decisions(session, splits, task) == wanted).astype(float))
    return found


def _compared(
    network: Network, runtime: str, baseline: Path, makers: peers.Makers, further: dict[str, list[Array]]
) -> Iterator[JsonObject]:
    """Score every file on search and holdout and time it beside the float file and laconic's, which comes first;
    ``further``: where files of other draws agree."""
    task, target, opener = network.task, Target(runtime), runtime_of(Target(runtime))
    splits, one = (task.search, task.holdout), task.search.read([0]).inputs
    original = opener.open_file(baseline, target)
    wanted, truth = peers.decisions(original, splits, task), peers.targets(splits)
    told = {"name": "float32", "n": len(wanted), "top1": float((wanted == truth).mean())}
    yield {**told, "file_bytes": peers.file_bytes(baseline)}
    mine: tuple[Callable[[], Predictor], Array] | None = None
    for name, make in makers.items():
        try:
            path = make()
            opened = partial(peers.tflite if name == peers.MLPERF else opener.open_file, path, target)
            session = opened()
            found = peers.decisions(session, splits, task)
        except Exception as error:  # whatever a peer's quantizer or its file raises is what it gives its user
            if mine is None:
                raise
            yield {"name": name, "failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}
            continue
        draws = [(found == wanted).astype(float), *further.get(name, [])]
        agrees = np.mean(draws, axis=0)
        row = {
            "name": name,
            "n": len(wanted),
            "top1": float((found == truth).mean()),
            "agreement": float(agrees.mean()),
            "agreement_of_draws": [float(one.mean()) for one in draws],
            "file_bytes": peers.file_bytes(path),
            "speed_to_float": peers.ratio(original, session, one),
        }
        if mine is None:
            mine = opened, agrees
        else:
            row["laconic_less_peer"] = less(mine[1], agrees)
            row["laconic_over_peer"] = peers.ratio_anew(opened, mine[0], one)
        yield row


def less(mine: Array, peer: Array) -> JsonObject:
    """Laconic's agreement less the peer's on the same samples, from records between 0 and 1, with its lower bound
    (paired, and exact where records are 0 or 1), and the p-value of "no better than the peer" on a sample where they
    differ (McNemar 1947: the sign test)."""
    binary = bool(np.isin((mine, peer), (0, 1)).all())
    drop, bound = proof.bound_drop(peer, mine, CONFIDENCE, binary=binary)
    lost, won = int((mine < peer).sum()), int((mine > peer).sum())
    p = binomtest(won, lost + won, alternative="greater").pvalue if lost + won else 1.0
    return {"difference": -drop, "difference_low": -bound, "lost": lost, "won": won, "p_no_better": float(p)}


if __name__ == "__main__":
    main(records.FOLDER, tuple(sys.argv[1:]))
