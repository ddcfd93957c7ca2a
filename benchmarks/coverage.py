"""How many networks laconic can prune: load -> profile -> prune 30 % of the heads and channels -> deploy -> compare.

Each network (:mod:`.coverage_networks`) runs in a process of its own, with limits on time and memory, so that a crash
or a hang is its row's; torch-pruning alone runs beside it. Rows are kept as they come in:
``python -m benchmarks.coverage`` goes on where it was stopped, ``--only NAME ...`` runs these again.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.coverage_networks import all_networks

LIMIT_S = 900
LIMIT_BYTES = 18 * 2**30
"""Of addresses; what a process of this kind has before it does anything are about 4 GiB."""
NAME = "coverage"
Row = dict[str, Any]


def main(folder: Path, only: tuple[str, ...] = ()) -> Row:
    """Run what the record in ``folder`` lacks, or ``only`` the networks whose names hold one of these words; first all
    of laconic, then all of torch-pruning, then ONNX."""
    from benchmarks import coverage_case as case

    path = folder / f"{NAME}.json"
    rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}
    networks = all_networks()
    rows = {network.name: rows.get(network.name, {"name": network.name}) for network in networks}
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["benchmarks.coverage_case"])
    parts: list[tuple[str, Callable[..., Row], tuple[Any, ...]]] = [
        ("laconic", case.examine, ()),
        ("torch_pruning", case.by_torch_pruning, ()),
        *((f"onnx {how}", case.through_onnx, (how,)) for how in case.EXPORTERS),
    ]
    found: Row = {}
    for part, work, given in parts:
        for network in networks:
            row = rows[network.name]
            chosen = any(word in network.name for word in only) if only else part not in row
            if not chosen or (part.startswith("onnx") and network.source != "torchvision"):
                continue
            start = time.monotonic()
            row[part] = _apart(processes, work, network, *given)
            row[part]["seconds"] = round(time.monotonic() - start, 1)
            print(f"{part}: {network.name}: {row[part]['status']} {row[part].get('why', '')}", flush=True)
            found = records.write(folder, NAME, {"rows": list(rows.values())})
    return found or json.loads(path.read_text())


def _apart(processes: Any, work: Callable[..., Row], *given: Any) -> Row:
    """What ``work`` gives in a process of its own, or that it died or took too long."""
    here, there = processes.Pipe(duplex=False)
    process = processes.Process(target=_send, args=(there, work, given), daemon=True)
    process.start()
    there.close()
    try:
        if here.poll(LIMIT_S):
            found: Row = here.recv()
            return found
        return {"status": "failed", "why": f"not done after {LIMIT_S} s"}
    except EOFError:
        process.join()
        return {"status": "failed", "why": f"its process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _send(connection: Connection, work: Callable[..., Row], given: tuple[Any, ...]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    connection.send(work(*given))


if __name__ == "__main__":
    main(records.FOLDER, tuple(word for word in sys.argv[1:] if word != "--only"))
