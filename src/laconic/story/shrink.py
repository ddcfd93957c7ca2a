"""The whole story: load, measure the original, search, certify, pack, report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from laconic import __version__
from laconic.core import JsonObject, Recipe, Target, Trial
from laconic.errors import GoalError, LaconicError, RecipeError, TargetError, TrialError
from laconic.goal import Goal
from laconic.ledger import Ledger
from laconic.pack import package
from laconic.report import render
from laconic.search.choose import Judge
from laconic.search.policy import Policy
from laconic.search.space import Space
from laconic.search.tools import BudgetSpentError
from laconic.story import dossier, preflight
from laconic.story.certify import Verdict, candidates, certify, measured
from laconic.story.evaluate import Evaluator, Job
from laconic.story.folder import FILES, LOG, claim
from laconic.story.reporter import Reporter
from laconic.story.trials import FINAL_ROUNDS, ROUNDS, Trials
from laconic.worker import InternalError, Worker

_FINAL_ATTEMPTS = 4


@dataclass(frozen=True)
class Wish:
    """What the user asked for, beside the model and the data."""

    goal: Goal
    target: Target
    out: Path
    keep: tuple[str, ...] = ()
    seed: int = 0
    recipe: Recipe | None = None
    expect_score: float | None = None
    reporter: Reporter = field(default_factory=Reporter)


@dataclass(frozen=True)
class Result:
    """The package that was written, and the object that ``--json`` prints."""

    package: package.Package
    summary: JsonObject

    @property
    def certified(self) -> bool:
        return bool(self.summary["status"] == "certified")


def shrink(load: Callable[[Any], Any], wish: Wish) -> Result:
    """Run the story; ``load(progress)`` gives the model and its task, in the worker process.

    Ctrl-C ends the search, not the story: what was found is certified and returned.
    """
    began = time.monotonic()
    if wish.recipe is not None and not wish.recipe.steps:
        raise RecipeError("the recipe has no steps", wanted="at least one")
    folder = claim(wish.out)
    try:
        job = Job(load, wish.target, wish.seed, wish.keep, folder.files)
        with Worker(partial(Evaluator, job), wish.out / LOG, preflight.memory_limit()) as worker:
            described = worker.call("describe", progress=wish.reporter.progress)
            ledger = Ledger(wish.out / package.LEDGER, _header(described))
            if described not in [{k: v for k, v in row.items() if k != "row"} for row in ledger.of("described")]:
                ledger.append({"row": "described", **described})
            trials = Trials(ledger, worker, wish.target, described, wish.goal, wish.reporter, folder.files)
            judge, reach = _preflight(trials, wish)
            _search(trials, judge, reach, wish, began)
            winner, verdict = _prove(trials, judge, wish)
            steps = winner.recipe.steps
            parts = [trials.part(Recipe(steps[:length])) for length in range(1, len(steps))]
            found = dossier.gather(trials, judge, winner, verdict, reach, parts)
            return Result(_pack(wish, found), dossier.summary(found, str(wish.out), time.monotonic() - began))
    except BaseException as error:
        folder.give_back(error)
        if isinstance(error, InternalError):
            raise InternalError(f"internal error: {error}; traceback in {wish.out / LOG}") from error
        raise


def _header(described: JsonObject) -> JsonObject:
    return {
        "model": described["model"]["fingerprint"],
        "data": described["data"]["fingerprint"],
        "laconic": __version__,
    }


def _preflight(trials: Trials, wish: Wish) -> tuple[Judge, JsonObject]:
    """Walk the whole way once with the original, and refuse what would waste the work behind it."""
    baseline = trials.measure(Recipe())
    preflight.require_disk(wish.out, int(baseline.measurements["file_bytes"].value))
    preflight.check_score(trials, wish.expect_score)
    preflight.check_floor(trials)
    reach = preflight.reach(trials)
    left_out, samples = preflight.left_out_in_words(trials.described), preflight.samples_in_words(trials)
    wish.reporter.preflight(trials.described, baseline, [*left_out, *samples, *preflight.in_words(reach)])
    return Judge(wish.goal, trials.max_drop, baseline), reach


def _search(trials: Trials, judge: Judge, reach: JsonObject, wish: Wish, began: float) -> None:
    """Search until the budget has ended, there is nothing left to try, or the user has had enough."""

    passed: list[Trial] = []

    def evaluate(recipe: Recipe) -> Trial:
        trial = trials.evaluate(recipe)
        if judge.passes(trial):
            passed.append(trial)
            if judge.best(passed) is trial:
                wish.reporter.best(trial)
            if not (wish.out / package.MANIFEST).exists():
                _pack(wish, dossier.gather(trials, judge, trial, None, reach))
                trials.ledger.append({"row": "package", "key": trial.key, "after": round(time.monotonic() - began, 1)})
                wish.reporter.note(f"a first package is in {wish.out}, uncertified yet: {recipe}")
        return trial

    try:
        if wish.recipe is not None:
            _refuse_broken(trials.measure(wish.recipe), trials)
        else:
            tools = trials.tools(evaluate)
            Policy(Space.of(trials.described), wish.goal, judge, tools).run()
            wish.reporter.note("nothing is left to try")
    except BudgetSpentError:
        wish.reporter.note("the budget has ended")
    except KeyboardInterrupt:
        if not measured(_tried(trials, wish)):
            raise
        trials.worker.stop()
        wish.reporter.note("stopped: certifying the best so far (Ctrl-C again to leave it uncertified)")


def _refuse_broken(trial: Trial, trials: Trials) -> None:
    """A recipe that the user gave is not a candidate among many: what is wrong with it is an error."""
    if trial.error is not None:
        row = trials.ledger.find("trial", key=trial.key) or {}
        raise (RecipeError if row.get("kind") == "RecipeError" else TrialError)(trial.error)


def _prove(trials: Trials, judge: Judge, wish: Wish) -> tuple[Trial, Verdict]:
    """Open the holdout for the front, and time the winner afresh."""
    _time_again(trials, judge)
    front, withheld = candidates(judge, _tried(trials, wish), free=wish.recipe is None)
    if not front:
        raise _nothing(trials)
    if withheld is not None:
        wish.reporter.note(f"{withheld}; what comes nearest is kept, uncertified")
    verdict = certify(trials, judge, front, withheld)
    key = verdict.winner.key
    for _ in range(len(trials.timings(key, final=True)), _FINAL_ATTEMPTS):
        row = trials.latency_row(key, final=True)
        if row is not None and not row["noisy"]:
            break
        trials.time(key, FINAL_ROUNDS)
    return verdict.winner, verdict


def _tried(trials: Trials, wish: Wish) -> list[Trial]:
    """All candidates; where the user gave a recipe, that one alone."""
    wanted = wish.recipe.key if wish.recipe is not None else None
    return [t for t in trials.all() if t.recipe.steps and wanted in (None, t.recipe.key)]


def _nothing(trials: Trials) -> LaconicError:
    """Why there is nothing to certify."""
    reasons = [f"{t.recipe}: {t.error or t.rejected}" for t in trials.all() if t.recipe.steps]
    if reasons:
        return TrialError(f"no candidate could be measured: {'; '.join(reasons)}")
    try:
        trials.check_budget()
    except BudgetSpentError:
        return GoalError("the budget ended before a candidate was tried", fix="give a larger --budget")
    return TargetError(
        "there is nothing to try", got=f"neither integers on {trials.target} nor channels that can be removed",
        fix="give another --target",
    )  # fmt: skip


def _time_again(trials: Trials, judge: Judge) -> None:
    """Give a trial that stands above the floor, but was timed while somebody else was working, another chance: one,
    so that the same command again changes nothing."""
    for trial in trials.all():
        rows = trials.timings(trial.key)
        if trial.recipe.steps and len(rows) == 1 and rows[0]["noisy"] and judge.holds(trial):
            trials.time(trial.key, ROUNDS)


def _pack(wish: Wish, found: JsonObject) -> package.Package:
    """Write the package; its report and its manifest say what ``found`` says."""
    files = [next((wish.out / FILES).glob(f"{found[name]['key']}.*")) for name in ("best", "baseline")]
    packed = wish.goal.minimize == "size"
    return package.write(wish.out, found, files[0], files[1], render(found), packed=packed)
