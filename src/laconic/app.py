"""One function per command: read the options, do it, print it. Returns the exit code."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from laconic import console
from laconic import doctor as doctors
from laconic.core import JsonObject, Recipe, Target, Task
from laconic.errors import FolderError, InputError, RecipeError
from laconic.goal import Goal, percent, size_bytes
from laconic.pack import package
from laconic.report import words

CERTIFIED, UNCERTIFIED = 0, 3


def shrink(options: Namespace) -> int:
    """``laconic shrink``: 0 if certified, 3 if not."""
    from laconic.story.shrink import Wish
    from laconic.story.shrink import shrink as run

    goal = Goal.parse(
        options.minimize,
        options.max_drop,
        options.confidence,
        options.max_latency,
        options.max_size,
        options.budget,
    )
    target = Target.parse(options.target) if options.target else Target("onnxruntime")
    recipe = _recipe(options.recipe) if options.recipe else None
    if 0 in (goal.budget.trials, goal.budget.seconds) and recipe is None:
        raise InputError("--budget 0 without --recipe leaves nothing to do", fix="give a budget or a recipe")
    load = partial(load_both, options.model, _data_of(options), trainable=not options.no_train, seed=options.seed)
    with console.ConsoleReporter() as reporter:
        wish = Wish(
            goal,
            target,
            options.out,
            keep=tuple(options.keep),
            seed=options.seed,
            recipe=recipe,
            expect_score=percent(options.expect_score, "--expect-score") if options.expect_score else None,
            reporter=reporter,
        )
        result = run(load, wish)
    return _print_result(result, options.json)


def _print_result(result: Any, as_json: bool) -> int:
    if as_json:
        print(json.dumps(result.summary))
    else:
        console.print_result(result.summary, result.package.manifest)
    return CERTIFIED if result.certified else UNCERTIFIED


def load_both(model: str, data: JsonObject, progress: Any, *, trainable: bool, seed: int) -> tuple[Any, Task]:
    """The model and its task, in the worker process. Pre-processing is what the user states, else the model's own."""
    from laconic.data import load as load_task
    from laconic.data import read_yaml
    from laconic.models import load as load_model

    loaded = load_model(model)
    preprocess = read_yaml(Path(data["preprocess"])) if data["preprocess"] else loaded.preprocess
    progress("reading the data", 0.0)
    task = load_task(
        data["spec"],
        preprocess=preprocess,
        trainable=trainable,
        seed=seed,
        max_corrupt=data["max_corrupt"],
        input_shape=loaded.input_shape,
    )
    if data["preprocess"]:
        task = replace(task, provenance={**task.provenance, "preprocess_file": data["preprocess"]})
    return loaded, task


def load_for(data: JsonObject, package_: package.Package) -> Task:
    """The task for a package: split as when it was made, with its own pre-processing unless the user states one."""
    from laconic.data import load as load_task
    from laconic.data import read_yaml

    stated = package_.manifest
    return load_task(
        data["spec"],
        preprocess=read_yaml(Path(data["preprocess"])) if data["preprocess"] else package_.preprocess,
        trainable=stated["trainable"],
        seed=stated["seed"],
        max_corrupt=data["max_corrupt"],
        input_shape=tuple(stated["input_shape"]),
    )


def _data_of(options: Namespace) -> JsonObject:
    return {
        "spec": options.data,
        "preprocess": str(options.preprocess) if options.preprocess else None,
        "max_corrupt": percent(options.max_corrupt, "--max-corrupt"),
    }


def _recipe(path: Path) -> Recipe:
    from laconic.steps import STEPS

    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error}") from error
    return Recipe.parse(rows, STEPS)


def eval(options: Namespace) -> int:
    """``laconic eval``: score, time and re-certify a package, or score and time a model."""
    from laconic.story import judge

    data = _data_of(options)
    goal = Goal.parse(max_drop=options.max_drop, confidence=options.confidence)
    subject = Path(options.subject)
    if (subject / package.MANIFEST).is_file():
        found = judge.package(package.read(subject), partial(load_for, data), options.target, goal)
    elif subject.is_dir():
        raise FolderError("not a package", got=str(subject), wanted=f"a folder with {package.MANIFEST}")
    elif subject.suffix == package.PACKED:
        from laconic.story import packed

        with packed.opened(subject) as alone:
            found = {"subject": str(subject), **judge.packed(alone, partial(load_for, data), options.target)}
    else:
        load = partial(load_both, options.subject, data, progress=lambda text, f: None, trainable=False, seed=0)
        found = judge.model(load, Target.parse(options.target or "onnxruntime"))
    if options.json:
        print(json.dumps(found))
    else:
        console.print_evaluation(found)
    failed = found.get("certificate") is not None and not found["certificate"]["passed"]
    return UNCERTIFIED if failed else CERTIFIED


def run(options: Namespace) -> int:
    """``laconic run``: labels with scores for pictures, outputs for arrays."""
    from laconic.story.apply import predictions

    if options.package.suffix == package.PACKED:
        from laconic.story import packed

        with packed.opened(options.package) as alone:
            rows = list(predictions(alone, options.inputs, options.top))
    else:
        rows = list(predictions(package.read(options.package), options.inputs, options.top))
    if options.json:
        print(json.dumps({"predictions": rows}))
        return 0
    cells = [[row["input"], *(f"{p['label']} {p['score']:.1%}" for p in row["labels"])] for row in rows]
    console.table("", ["input", *[f"{i + 1}." for i in range(max(len(c) for c in cells) - 1)]], cells)
    return 0


def profile(options: Namespace) -> int:
    """``laconic profile``: what a model costs, layer by layer; with ``--out`` as a picture and a page too."""
    from laconic.story import profiling

    target = Target.parse(options.target) if options.target else None
    cache_bytes = size_bytes(options.cache, "--cache")
    if options.top < 1:
        raise InputError("--top is too small", got=options.top, wanted="at least 1")
    if options.data and options.input:
        raise InputError("--data and --input both say what the input is", fix="give one of them")
    shape = _shape(options.input) if options.input else None
    _require_writable(options.out)
    with console.ConsoleReporter() as reporter:
        subject = _subject(options, shape, target.batch if target else 1, reporter)
        found = profiling.profiled(subject, target or subject.target, cache_bytes, reporter)
    if options.out:
        _write_profile(options.out, found)
    if options.json:
        print(json.dumps(found))
    else:
        console.print_profile(found, options.top, options.out)
    return 0


def _subject(options: Namespace, shape: tuple[int, ...] | None, batch: int, reporter: Any) -> Any:
    """What ``profile`` is asked about: a package, or a model on data, on noise of a shape, or of its own shape."""
    from laconic.models import load as load_model
    from laconic.story import profiling

    folder = Path(options.model)
    if (folder / package.MANIFEST).is_file():
        if options.data or shape:
            raise InputError("a package says what its input is", fix="leave --data and --input out")
        return profiling.of_package(package.read(folder), batch)
    if folder.is_dir():
        raise FolderError("not a package", got=str(folder), wanted=f"a folder with {package.MANIFEST}")
    if not options.data:
        return profiling.of_model(load_model(options.model), shape, None, batch)
    loaded, task = load_both(options.model, _data_of(options), reporter.progress, trainable=False, seed=0)
    samples = task.search.read([i % len(task.search) for i in range(max(8, batch))])
    return profiling.of_model(loaded, None, samples.inputs, batch)


def _require_writable(out: Path | None) -> None:
    if out is not None and out.exists() and not out.is_dir():
        raise FolderError("--out is no folder", got=str(out), wanted="a folder for profile.svg and profile.html")


def _write_profile(out: Path, found: JsonObject) -> None:
    from laconic.report import profile_page, profile_svg

    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "profile.svg").write_text(profile_svg(found), encoding="utf-8")
        (out / "profile.html").write_text(profile_page(found), encoding="utf-8")
    except OSError as error:
        raise FolderError(f"{out} cannot be written: {error}", fix="give another --out") from error


def _shape(text: str) -> tuple[int, ...]:
    parts = text.lower().split("x")
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise InputError("--input cannot be read", got=repr(text), wanted="sizes without the batch, such as 3x224x224")
    return tuple(int(part) for part in parts)


def export(options: Namespace) -> int:
    """``laconic export``: the package's file for another target, after it was seen to give the same there."""
    from laconic.story import packed
    from laconic.story.apply import exported

    if options.target == packed.TARGET:
        found = packed.exported(package.read(options.package), options.out)
        if options.json:
            print(json.dumps(found))
        else:
            console.print_packed(found)
        return 0
    found = exported(package.read(options.package), Target.parse(options.target), options.out)
    if options.json:
        print(json.dumps(found))
    else:
        console.say(f"wrote {found['file']} ({words.size(found['bytes'])}) for {found['target']}")
        console.say(f"its outputs differ by {found['difference']:.1e} from those on {found['certified_on']}")
        if found["note"]:
            console.say(found["note"])
    return 0


def explain(options: Namespace) -> int:
    """``laconic explain``: the report in the terminal, and in a browser where there is one; or why slow, or wrong."""
    import sys
    import webbrowser

    from laconic.report import print_report

    if (options.data is not None) != (options.why == "wrong"):
        raise InputError("--why wrong and --data go together", fix="laconic explain PACKAGE --why wrong --data DATA")
    found = package.read(options.package)
    if options.why:
        return _why(options, found)
    if options.json:
        print(json.dumps(found.manifest))
        return 0
    print_report(found.manifest)
    path = (found.folder / package.REPORT).resolve()
    console.say(f"report: {path}")
    if sys.stdout.isatty():
        webbrowser.open(path.as_uri())
    return 0


def _why(options: Namespace, package_: package.Package) -> int:
    if options.why == "slow":
        from laconic.story.why_slow import slow

        found, show = slow(package_), console.print_slow
    else:
        from laconic.story.why_wrong import wrong

        found, show = wrong(package_, partial(load_for, _data_of(options))), console.print_wrong
    if options.json:
        print(json.dumps(found))
    else:
        show(found)
    return 0


def doctor(options: Namespace) -> int:
    """``laconic doctor``: what is here."""
    found = doctors.examine()
    if options.json:
        print(json.dumps(found))
    else:
        doctors.print_found(found)
    return 0


def demo(options: Namespace) -> int:
    """``laconic demo``: train the smallest network that reads digits, then shrink it."""
    from laconic import demo as demos  # it needs this module

    return _print_result(demos.run(options.out), options.json)
