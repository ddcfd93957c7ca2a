"""What people see while they wait, on standard error, and the tables they get, on standard output."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from laconic.core import JsonObject, Trial
from laconic.report import profiles, words
from laconic.report.svg import shorten
from laconic.story.reporter import Reporter


class ConsoleReporter(Reporter):
    """A line that moves (what is being tried, the best so far, the time left) above lines that stay (what was found).

    On a standard error that is no terminal only the lines that stay are written.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._best, self._count = "", 0
        self._ends: float | None = None
        self._trials_left: int | None = None
        self._seen: set[str] = set()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(16), TextColumn("{task.fields[rest]}"))
        self._progress = Progress(*columns, console=self.console, transient=True, refresh_per_second=4)
        self._task = self._progress.add_task("starting", total=1.0, rest="")

    def __enter__(self) -> ConsoleReporter:
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._progress.stop()

    def note(self, text: str) -> None:
        self._print(f"[cyan]{escape(text)}[/]")

    def preflight(self, described: JsonObject, baseline: Trial, notes: Sequence[str]) -> None:
        n, m = described["splits"], baseline.measurements
        self._print(f"[bold]{escape(described['model']['source'])}[/] on {escape(str(baseline.target))}")
        if described["model"]["note"]:
            self._print(f"  [yellow]{escape(described['model']['note'])}[/]")
        counts = f"{n['train']} train, {n['search']} search, {n['holdout']} holdout"
        self._print(f"  {described['metric']['name']} {m['score'].value:.2%} on search ({counts})")
        speed = words.latency(m["baseline_latency"].value)
        self._print(f"  {words.size(m['file_bytes'].value)}, {speed}, {words.count(m['macs'].value)} MACs")
        for line in notes:
            self._print(f"  {escape(line)}")

    def trying(self, text: str, seconds_left: float | None, trials_left: int | None) -> None:
        self._ends = None if seconds_left is None else time.monotonic() + seconds_left
        self._trials_left = trials_left
        self.progress(text, 0.0)

    def tried(self, trial: Trial) -> None:
        if trial.key in self._seen or not trial.recipe.steps:
            return
        self._seen.add(trial.key)
        self._count += 1
        found = f"{self._count:>3}  {escape(_found(trial))}  [dim]{escape(str(trial.recipe))}[/]"
        cut = self.console.is_terminal  # a line per trial there; a file gets the whole
        self.console.print(found, soft_wrap=not cut, no_wrap=True, overflow="ellipsis" if cut else "ignore")

    def best(self, trial: Trial) -> None:
        self._best = f"{_speed(trial).strip()}, {_size(trial).strip()}"

    def progress(self, text: str, fraction: float) -> None:
        rest = [f"best {self._best}"] if self._best else []
        if self._ends is not None:
            seconds = max(0, int(self._ends - time.monotonic()))
            rest.append(f"{seconds // 60}:{seconds % 60:02d} left")
        elif self._trials_left is not None:
            rest.append(f"{max(0, self._trials_left)} trials left")
        self._progress.update(self._task, description=escape(text[:44]), completed=fraction, rest=", ".join(rest))

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=not self.console.is_terminal)


def _found(trial: Trial) -> str:
    """A trial in one short line of fixed columns."""
    if trial.error is not None:
        return f"failed: {trial.error[:60]}"
    m = trial.measurements
    if "drop" not in m:
        return f"{'rejected early':<34}"
    noisy = " (noisy)" if trial.rejected else ""
    return f"{_size(trial)} {_speed(trial)} drop {m['drop'].value:+6.2%}{noisy}"


def _size(trial: Trial) -> str:
    """Nine columns, and the word where it is the packed file's, which is measured where size is minimised."""
    m = trial.measurements
    name, word = ("packed_bytes", " packed") if "packed_bytes" in m else ("file_bytes", "")
    return f"{words.size(m[name].value):>9}{word}"


def _speed(trial: Trial) -> str:
    """Six columns: of weights that are only stored short no speed is told."""
    if trial.only_stored:
        return "  fp32"
    return f"{trial.measurements['speedup'].value:5.2f}x" if "speedup" in trial.measurements else " " * 6


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output, as wide as the terminal at the most."""
    drawn = Table(*columns, title=title or None, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for row in rows:
        drawn.add_row(*(escape(cell) for cell in row))
    Console(highlight=False).print(drawn)


def say(text: str) -> None:
    """A line on standard output."""
    Console(highlight=False, soft_wrap=True).print(escape(text))


def print_result(summary: JsonObject, dossier: JsonObject) -> None:
    """The end of ``shrink``: before and after, the certificate in words, where the package is."""
    before, after, ratio = summary["baseline"], summary["best"], summary["ratio"]
    speed = ratio["latency"]
    interval = words.faster(ratio)
    if not ratio["only_stored"]:
        interval = f"{interval} ({speed['low']:.2f} to {speed['high']:.2f})"
    rows = [
        [words.short_metric(dossier["metric"]["name"]), f"{before['score']:.2%}", f"{after['score']:.2%}", ""],
        ["file", words.size(before["file_bytes"]), words.size(after["file_bytes"]), words.smaller(ratio)],
        [
            *("packed (.lac)", words.size(before["packed_bytes"]), words.size(after["packed_bytes"])),
            words.packed(ratio, after["payload_bytes"]),
        ],
        ["latency", words.latency(before["latency_ms"]), words.latency(after["latency_ms"]), interval],
        ["MACs", words.count(before["macs"]), words.count(after["macs"]), ""],
        ["parameters", words.count(before["params"]), words.count(after["params"]), ""],
    ]
    table("", ["", "original", "laconic", ""], rows)
    say(words.in_words(dossier))
    say(f"package: {summary['package']} (report.html, recipe.yaml)")


def print_packed(found: JsonObject) -> None:
    """What ``export --target lac`` wrote: the whole file, what of it are weights, and what it decodes to."""
    whole, weights, rest = (words.size(found[name]) for name in ("bytes", "payload_bytes", "structure_bytes"))
    unpacked = found["unpacked"]
    say(f"wrote {found['file']} ({whole}: {weights} of weights, {rest} of structure)")
    say(f"it decodes to the certified file, {words.size(unpacked['bytes'])}, SHA-256 {unpacked['sha256']}")


def print_evaluation(found: JsonObject) -> None:
    """What ``eval`` found: score, agreement, latency, and the certificate in words."""
    latency = found["latency_ms"]
    rows = [[found["metric"], f"{found['score']:.2%} of {found['n']} samples"]]
    if found["agreement"] is not None and found["certificate"] is not None:
        rows.append(["agreement with the original", f"{found['agreement']:.2%}"])
    rows.append(["latency", f"{latency['p50']:.3g} ms (p90 {latency['p90']:.3g}, p99 {latency['p99']:.3g})"])
    if "packed_bytes" in found:
        size, weights = words.size(found["packed_bytes"]), words.size(found["payload_bytes"])
        rows.append(["packed", f"{size}, {weights} of it weights; {words.size(found['file_bytes'])} as decoded"])
    table(f"{found['subject']} on {found['target']}", ["", ""], rows)
    proof_of = found["certificate"]
    if proof_of is not None:
        verdict = "stands above the floor" if proof_of["passed"] else "is NOT proved to stand above the floor"
        seen = (
            "" if proof_of["independent"] else "; these samples were used for its certificate before: not independent"
        )
        say(
            f"{verdict}: drop {proof_of['drop']:.2%}, at {proof_of['confidence']:.0%} confidence at most "
            f"{proof_of['bound']:.2%}, {proof_of['max_drop']:.2%} being allowed{seen}"
        )


_LAYERS, _TEN, _ENTRIES = 20, 10, 3
_NAME, _KERNELS, _WIDTH = 28, 22, 80


def print_slow(found: JsonObject) -> None:
    """Where a package's time goes: the slowest layers beside the original's, what was found, a verdict."""
    every = found["layers"]
    shown = sorted(every, key=lambda row: -max(row["before_ms"] or 0, row["after_ms"] or 0))[:_LAYERS]
    rows = []
    for row in (row for row in every if row in shown):
        times = ["-" if row[when] is None else words.latency(row[when]) for when in ("before_ms", "after_ms")]
        ratio = f"{row['ratio']:.2f}x" if row["ratio"] else "-"
        name = "(conversions)" if row["arithmetic"] == ["convert"] else row["name"]
        rows.append([shorten(name, _NAME), *times, ratio, shorten(", ".join(row["operators"]), _KERNELS)])
    more = f", the {len(rows)} slowest of {len(every)} layers" if len(every) > len(rows) else ""
    _paragraph(f"The runtime's own profile on {found['target']}{more}")
    table("", ["", "original", "laconic", "faster", "ran as"], rows)
    for finding in found["findings"][:_TEN]:
        _item(f"{words.latency(finding['time_ms'])}: {finding['what']}. {finding['do']}")
    if len(found["findings"]) > _TEN:
        _item(f"and {len(found['findings']) - _TEN} more of less weight: --json has them all")
    _paragraph(found["verdict"])


def print_wrong(found: JsonObject) -> None:
    """Where a package's accuracy goes: the noisiest layers, where noise enters, classes and samples."""
    before, after = (f"{found[when]:.2%}" for when in ("before", "after"))
    where = " and ".join(found["parts"])
    shut = " (the holdout stays shut)" if "holdout" not in found["parts"] else ""
    _paragraph(f"{words.metric(found['metric'])} {before} -> {after} on {found['n']} samples of {where}{shut}")
    worst = sorted(found["layers"], key=lambda row: row["snr_db"])[:_TEN]
    rows = [[shorten(row["name"], _NAME), f"{row['snr_db']:.1f}", f"{row['own_db']:.1f}"] for row in worst]
    _paragraph(
        f"Signal to noise in dB on {found['noise_samples']} of them, the noisiest of {len(found['layers'])} layers"
    )
    table("", ["", "SNR", "of its own"], rows)
    for entry in found["entries"][:_ENTRIES]:
        advice = f"; {entry['do']}" if entry["do"] else ""
        _item(f"noise enters at {entry['name']}: {entry['own_db']:.1f} dB even where all it reads is clean{advice}")
    for key, reason in (("other_shape", "of another shape"), ("unmatched", "in one of the files only")):
        if found[key]:
            _item(f"not compared, {reason}: {shorten(', '.join(found[key]), 3 * _WIDTH)}")
    if not found["classes"]:
        _paragraph("This score has no decisions: there are no classes and no flips to list.")
        return
    hurt = [row for row in found["classes"] if row["lost"] > 0][:_TEN]
    label = found["labels"]
    shares = [[label[str(row["class"])], str(row["n"]), f"{row['before']:.1%}", f"{row['after']:.1%}"] for row in hurt]
    if shares:
        _paragraph("The classes most hurt")
        table("", ["", "samples", "original", "laconic"], shares)
    flips = found["flips"]
    cells = [
        [
            shorten(flip["sample"], _NAME),
            *(shorten(label[str(flip[key])], _KERNELS) for key in ("wanted", "before", "after")),
        ]
        for flip in flips[:_TEN]
    ]
    if cells:
        first = f", the first {len(cells)}" if len(flips) > len(cells) else ""
        _paragraph(f"{len(flips)} samples decided differently{first}")
        table("", ["", "wanted", "original", "laconic"], cells)
    else:
        _paragraph("No sample was decided differently.")


def _item(text: str) -> None:
    say(textwrap.fill(text, _WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False))


def _paragraph(text: str) -> None:
    say(textwrap.fill(text, _WIDTH, break_on_hyphens=False))


def print_profile(found: JsonObject, top: int, out: Path | None) -> None:
    """What a model costs: its layers by what they weigh most, and the totals."""
    if found["note"]:
        _paragraph(found["note"])
    rows, which = profiles.layer_cells(found, top)
    more = f", {which}" if which else ""
    _paragraph(f"{found['model']} on {found['target']}, one sample{more}")
    table("", profiles.COLUMNS, rows)
    table("", ["in all", "", ""], profiles.totals(found))
    for line in profiles.notes(found):
        _paragraph(line)
    if out is not None:
        _paragraph(f"picture and page: {out / 'profile.svg'}, {out / 'profile.html'}")
