"""What the report says, section by section, as plain words and rows: the page and the terminal both print these."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from laconic.core import JsonObject, describe
from laconic.report import words as told
from laconic.report.words import (
    count,
    factor,
    faster,
    latency,
    packed,
    percent,
    points,
    points_at_most,
    short_metric,
    size,
    smaller,
)

Pairs = list[tuple[str, str]]
_MEANINGS = {
    "below the floor": "the lower bound of its drop on search is above the floor",
    "not better": "less than 3 % faster and less than 1 % smaller",
    "undecided": "search decides neither: it may be better, and may stand above the floor",
    "not tried": "the search ended before it was measured",
}
_LISTED = 6


def compared(dossier: JsonObject) -> list[tuple[str, str, str, str]]:
    """Name, before, after, change: of score, file, latency, MACs and parameters."""
    before, after, n = dossier["baseline"], dossier["best"], dossier["splits"]
    name = short_metric(dossier["metric"]["name"])
    rows = []
    if dossier["certificate"] is not None:
        rows.append(_score(f"{name}, {n['holdout']:,} holdout samples", before["score"], after["score"]))
    rows.append(_score(f"{name}, {n['search']:,} search samples", before["search_score"], after["search_score"]))
    speed = dossier["ratio"]["latency"]
    interval = faster(dossier["ratio"])
    if not dossier["ratio"].get("only_stored"):
        interval = f"{interval} ({factor(speed['low'])} to {factor(speed['high'])})"
    rows += [
        ("file", size(before["file_bytes"]), size(after["file_bytes"]), smaller(dossier["ratio"])),
        (
            *("packed (.lac)", size(before["packed_bytes"]), size(after["packed_bytes"])),
            packed(dossier["ratio"], after["payload_bytes"]),
        ),
        ("latency per call", latency(before["latency_ms"]), latency(after["latency_ms"]), interval),
    ]
    for title, key in (("MACs", "macs"), ("parameters", "params")):
        rows.append((title, count(before[key]), count(after[key]), _fewer(before[key], after[key])))
    return rows


def _score(name: str, before: float, after: float) -> tuple[str, str, str, str]:
    return (
        name,
        f"{before:.2%}",
        f"{after:.2%}",
        "the same" if before == after else f"{100 * (after - before):+.2f} points",
    )


def _fewer(before: float, after: float) -> str:
    if before == after or not before or not after:
        return "the same" if before == after else ""
    ratio = factor(max(before / after, after / before))
    return "about the same" if ratio == "1.00" else f"{ratio}x {'fewer' if after < before else 'more'}"


def not_counted(dossier: JsonObject) -> list[str]:
    """The operators that the MACs leave out: they are unknown, not zero."""
    lines = []
    for side, words in (("baseline", "the original"), ("best", "the laconic model")):
        unknown = dossier[side]["unsupported"]
        if unknown:
            named = ", ".join(f"{name} x{n}" for name, n in unknown.items())
            lines.append(f"Not counted in the MACs of {words}: {named}.")
    return lines


def formats(dossier: JsonObject) -> list[str]:
    """What the chosen file's layers of few bits are stored at and computed in."""
    return told.formats(dossier["best"].get("computed", []))


def warnings(dossier: JsonObject) -> list[str]:
    """What the recipe's steps warn of, and the operators that they left in float between integers."""
    lines = []
    for row, fact in zip(dossier["recipe"], dossier["facts"], strict=True):
        lines += [f"{row['step']}: {warning}." for warning in fact.get("warnings", [])]
        floats = fact.get("left_in_float", [])
        if floats:
            lines.append(f"{row['step']} left in float: {_listed(floats)}.")
    return lines


def certificate(dossier: JsonObject) -> Pairs:
    """The exact numbers of the certificate; empty while there is none."""
    found: Any = dossier["certificate"]
    if found is None:
        return []
    pairs = [("samples (n)", f"{found['n']:,}")]
    if found["lost"] is not None:
        pairs += [("lost / won", f"{found['lost']:,} / {found['won']:,}")]
    pairs += [
        ("drop", f"{points(found['drop'])} points"),
        ("bound", f"{points_at_most(found['bound'])} points"),
        ("floor", f"{points(found['max_drop'])} points"),
        ("confidence", percent(found["confidence"])),
        ("test", found["test"]),
        ("in the sequence", f"{found['tested']} candidates"),
        (
            "holdout opened",
            "once: independent" if found["independent"] else f"{found['opening']} times: NOT independent",
        ),
    ]
    return pairs


def tested(dossier: JsonObject) -> list[JsonObject]:
    """The test sequence; after the first that failed nothing was tested."""
    rows, failed = [], False
    for row in dossier["tested"]:
        result = "not tested" if failed else "passed" if row["passed"] else "failed"
        failed = failed or not row["passed"]
        chosen = row["key"] == dossier["best"]["key"]
        rows.append({"name": describe(row["recipe"]), "p": _p(row["p"]), "result": result, "chosen": chosen})
    return rows


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def minimality(dossier: JsonObject) -> list[JsonObject]:
    """The winner's neighbours under what was found of them; empty where it has none."""
    found = dossier["minimality"]
    if not any(found.values()):
        return []
    return [
        {"name": name, "count": len(labels), "meaning": _MEANINGS.get(name, ""), "entries": _together(labels)}
        for name, labels in found.items()
    ]


def minimality_words(dossier: JsonObject) -> str:
    """What is claimed, and that nothing more is."""
    total = sum(map(len, dossier["minimality"].values()))
    if not total:
        return "The chosen recipe has no neighbour that is one notch smaller within the space that was searched."
    return (
        f"{total:,} {'recipe differs' if total == 1 else 'recipes differ'} from the chosen one by a single notch that "
        "should make it smaller or faster. This is what search said of each; no claim goes beyond this list."
    )


def _together(labels: Iterable[str]) -> list[str]:
    """Labels of equal words once, with how many they are."""
    return [label if n == 1 else f"{label} ({n} of them)" for label, n in Counter(labels).items()]


def machine(dossier: JsonObject) -> Pairs:
    """Where it was measured, and with what."""
    here = dossier["machine"]
    return [
        ("processor", f"{here['processor']}, {here['architecture']}"),
        ("it can do", ", ".join(here["features"]) or "nothing that is known to matter"),
        ("cores, memory", f"{here['cores']} cores, {here['memory_gib']} GiB"),
        ("system", f"{here['system']}, Python {here['python']}"),
        ("target", dossier["target"]),
        ("libraries", ", ".join(f"{name} {version}" for name, version in dossier["libraries"].items())),
    ]


def noisy(dossier: JsonObject) -> str:
    """A warning where the timing was not quiet; empty otherwise."""
    if not dossier["timing"]["noisy"]:
        return ""
    return (
        "The timing stayed noisy: other work was running on this machine. Take the speed as an estimate, and measure "
        "again on a quiet machine: laconic eval PACKAGE --data DATA."
    )


def timing(dossier: JsonObject) -> list[str]:
    """How the latency was measured."""
    found = dossier["timing"]
    n = found["calls_per_burst"]
    calls = f", {n:,} call{'s' * (n != 1)} each" if n else ""
    lines = [
        f"Both files ran on {dossier['target']}, in turn: the original, the laconic model, the original again{calls}, "
        "round after round. The ratio is taken inside each round, so that whatever slows the machine slows both; the "
        "interval is that of the median of the rounds.",
    ]
    if found["drift"] is not None:
        lines.append(
            f"Within a round the original's second timing was {found['drift']:.3f} of its first (drift), and the "
            f"processor's clock gave {found['clocks']:.3f} of the wall clock's ratio; beyond 0.97 to 1.03 a timing "
            "counts as noisy and is repeated."
        )
    if dossier["certificate"] is not None:
        lines.append("The chosen model was timed afresh after it was chosen, and only that figure is reported for it.")
    return lines


def reach_words(dossier: JsonObject) -> str:
    """What the holdout could prove before it was opened."""
    found = dossier["reach"]
    words = (
        f"Even a model as good as the original answers some samples differently. The more, the larger the drop that "
        f"{found['n']:,} holdout samples cannot exclude. The floor is {points(found['floor'])} points."
    )
    return words if found["within_reach"] else f"{words} It is out of reach even if no answer differs."


def reach(dossier: JsonObject) -> list[JsonObject]:
    """Per share of answers that differ: the least drop that the holdout could exclude, and the samples needed."""
    return [
        {
            "discordance": percent(row["discordance"]),
            "least": f"{points_at_most(row['least_floor'])} points",
            "needed": "enough" if row["least_floor"] <= dossier["reach"]["floor"] else f"{row['samples_needed']:,}",
        }
        for row in dossier["reach"]["rows"]
    ]


def provenance(dossier: JsonObject) -> Pairs:
    """Where the data came from and what was done with it."""
    data, n = dossier["data"], dossier["splits"]
    corrupt = data.get("corrupt", {"count": 0})["count"]
    told = {"source", "kind", "rule", "n", "corrupt", "labelled", "fingerprint", "preprocess"}
    return [
        ("data", f"{data['source']} ({data.get('kind', 'of an unnamed kind')})"),
        ("splits", f"{n['train']:,} train, {n['search']:,} search, {n['holdout']:,} holdout"),
        ("how they were cut", str(data.get("rule", "not stated"))),
        ("calibration", f"the first {dossier['calibration']:,} of train"),
        ("training", "allowed, on train" if dossier["trainable"] else "not allowed"),
        ("labels", f"{len(dossier['labels']):,} classes" if data["labelled"] else "none: the score is agreement"),
        ("left out as corrupt", str(corrupt) if corrupt else "none"),
        *((name.replace("_", " "), _brief(value)) for name, value in data.items() if name not in told),
    ]


def preprocess(dossier: JsonObject) -> Pairs:
    """The pre-processing, in the order in which it is applied; empty where there is none."""
    stated = dossier["preprocess"] or {}
    return [(name, _brief(value)) for name, value in stated.items() if value is not None]


def steps(dossier: JsonObject) -> list[JsonObject]:
    """What each step did, as far as a few words hold it."""
    return [
        {"name": describe([row]), "facts": [(name.replace("_", " "), _brief(value)) for name, value in fact.items()]}
        for row, fact in zip(dossier["recipe"], dossier["facts"], strict=True)
    ]


def after_steps(dossier: JsonObject) -> list[tuple[str, ...]]:
    """After each step of a recipe of several: its name, and score on search, file, MACs and speed as measured there."""
    names = [describe([row]) for row in dossier["recipe"]]
    rows: list[tuple[str, ...]] = []
    for name, part in zip(names, dossier["after_steps"], strict=False):  # of a single step nothing is told apart
        found = part["measurements"]
        score, speed = found.get("score"), found.get("speedup")
        early = ", so far" if "drop" not in found else ""  # its scoring ended where the drop was clear
        rows.append(
            (
                name,
                part["error"] or (f"{score[0]:.2%}{early}" if score else ""),
                size(found["file_bytes"][0]) if "file_bytes" in found else "",
                _fewer(dossier["baseline"]["macs"], found["macs"][0]) if "macs" in found else "",
                f"{factor(speed[0])}x" if speed else "",
            )
        )
    return rows


def _brief(value: Any) -> str:
    """Any JSON in a few words: of long lists the length."""
    if isinstance(value, dict):
        lengths = {key: len(entry) if isinstance(entry, list) else entry for key, entry in value.items()}
        shown = [f"{key}: {_brief(entry)}" for key, entry in lengths.items()]
        return _listed(shown) or "none"
    if isinstance(value, list):
        if all(isinstance(entry, str | int | float) for entry in value):
            return _listed([_brief(entry) for entry in value]) or "none"
        return f"{len(value)} entries"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _listed(words: list[str]) -> str:
    more = [f"{len(words) - _LISTED} more"] if len(words) > _LISTED else []
    return ", ".join(words[:_LISTED] + more)
