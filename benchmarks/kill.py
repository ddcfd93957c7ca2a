"""``kill -9`` at ten random moments of a search, then the same command again each time.

After every kill the rows that were finished must still be there, to the byte; at the end no trial may stand there
twice; and the policy, told again from the recorded measurements alone, must arrive at the same winner.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

from benchmarks import lenet, records
from laconic.core import Recipe, Target
from laconic.goal import Budget, Goal
from laconic.ledger import Ledger, read
from laconic.pack import package
from laconic.search.choose import Judge
from laconic.search.policy import Policy
from laconic.search.space import Space
from laconic.search.tools import BudgetSpentError
from laconic.story.certify import candidates, certify
from laconic.story.folder import FILES
from laconic.story.reporter import Reporter
from laconic.story.trials import Trials
from laconic.worker import Worker

KILLS, SEED = 10, 1
OPTIONS = ("--max-drop", "0.5%", "--budget", "40trials")
LEAST_S, MOST_S = 5.0, 75.0


def main(folder: Path) -> dict[str, Any]:
    mnist = records.data("mnist")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        command = ("shrink", lenet.train(mnist, Path(scratch)), "--data", mnist, "--out", out, *OPTIONS)
        kills = _killed(command, out)
        summary = records.laconic(*command)
        rows = read(out / package.LEDGER)
        keys = [
            (row["row"], row["key"], row.get("final")) for row in rows if row["row"] in ("trial", "probe", "latency")
        ]
        again = records.laconic(*command)
        found = {
            "kills": kills,
            "rows": len(rows),
            "repeated": sorted({key for key in keys if keys.count(key) > 1}),
            "trials": summary["trials"],
            "status": summary["status"],
            "winner": summary["best"]["recipe"],
            "winner_of_the_same_command_again": again["best"]["recipe"],
            "winner_replayed": _replayed(out),
        }
    print(json.dumps(found, indent=1))
    assert all(kill["lost"] == 0 for kill in kills), "a finished row was lost"
    assert not found["repeated"], "a row was repeated"
    assert found["winner"] == found["winner_of_the_same_command_again"] == found["winner_replayed"]
    return records.write(folder, "kill", found)


def _killed(command: tuple[Any, ...], out: Path) -> list[dict[str, Any]]:
    """Start the command and kill its whole process group, again and again; what the ledger held before and after."""
    moments, kills, ledger = random.Random(SEED), [], out / package.LEDGER
    for _ in range(KILLS):
        seconds = moments.uniform(LEAST_S, MOST_S)
        arguments = [sys.executable, "-m", "laconic.cli", *map(str, command)]
        with subprocess.Popen(arguments, stderr=subprocess.DEVNULL, start_new_session=True) as process:
            time.sleep(seconds)
            os.killpg(process.pid, signal.SIGKILL)
        before = ledger.read_bytes() if ledger.exists() else b""
        finished = before[: before.rfind(b"\n") + 1]
        with subprocess.Popen(arguments, stderr=subprocess.DEVNULL, start_new_session=True) as process:
            _wait_for_more(ledger, len(before), process)
            os.killpg(process.pid, signal.SIGKILL)
        after = ledger.read_bytes() if ledger.exists() else b""
        lost = 0 if after.startswith(finished) else finished.count(b"\n")
        kills.append({"seconds": round(seconds, 1), "rows": finished.count(b"\n"), "torn": len(before) - len(finished)})
        kills[-1]["lost"] = lost
        print(kills[-1], flush=True)
    return kills


def _wait_for_more(ledger: Path, size: int, process: subprocess.Popen[bytes]) -> None:
    """Until the resumed run has written something, or has ended."""
    for _ in range(600):
        if process.poll() is not None or (ledger.exists() and ledger.stat().st_size > size):
            return
        time.sleep(0.25)


def _replayed(out: Path) -> list[dict[str, Any]]:
    """The winner of a story that is told nothing but the ledger: a worker that is asked for anything fails."""
    made = package.read(out)
    rows = read(out / package.LEDGER)
    described = next(row for row in rows if row["row"] == "described")
    goal = Goal(max_drop=0.005, budget=Budget(seconds=None, trials=40))
    ledger, worker = Ledger(out / package.LEDGER, rows[0]), cast(Worker, _NoWorker())
    trials = Trials(ledger, worker, Target.parse(made.manifest["target"]), described, goal, Reporter(), out / FILES)
    judge = Judge(goal, trials.max_drop, trials.measure(Recipe()))
    policy = Policy(Space.of(described), goal, judge, trials.tools(trials.evaluate))
    with contextlib.suppress(BudgetSpentError):
        policy.run()
    seen = {trial.key: trial for trial in policy.trials if trial.recipe.steps}
    front, withheld = candidates(judge, list(seen.values()), free=True)
    return certify(trials, judge, front, withheld).winner.recipe.to_json()


class _NoWorker:
    def call(self, method: str, *arguments: object, **options: object) -> None:
        raise AssertionError(f"the ledger lacks what {method} would give")


if __name__ == "__main__":
    main(records.FOLDER)
