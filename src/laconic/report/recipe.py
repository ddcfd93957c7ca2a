"""The recipe to replay: as YAML, as one short line, and as the command that applies it again."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from typing import Any

from laconic.core import JsonObject
from laconic.report.words import points

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_RESERVED = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def to_yaml(rows: Sequence[JsonObject]) -> str:
    """The steps as YAML that ``--recipe`` reads.

    >>> print(to_yaml([{"step": "PruneChannels", "layers": {"conv1": 0.5, "1.0": 1e-05}}, {"step": "Quantize"}]))
    - step: PruneChannels
      layers:
        conv1: 0.5
        "1.0": 1.0e-05
    - step: Quantize
    """
    lines: list[str] = []
    for row in rows:
        settings = [line for name, value in row.items() for line in _setting(name, value)]
        lines += [("  " if i else "- ") + line for i, line in enumerate(settings)]
    return "\n".join(lines) or "[]"


def _setting(name: str, value: Any) -> list[str]:
    if isinstance(value, dict) and value:
        inner = [line for key, entry in value.items() for line in _setting(key, entry)]
        return [f"{_scalar(name)}:", *("  " + line for line in inner)]
    return [f"{_scalar(name)}: {_scalar(value)}"]


def _scalar(value: Any) -> str:
    """A value on one line. YAML takes JSON, but for words, which need no quotes, and 1e-05, which it reads as one."""
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _RESERVED
        return value if plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        text = repr(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    return json.dumps(value)


def command(dossier: JsonObject) -> str:
    """The command line that applies the recipe again, with no search; an option per line."""
    goal = dossier["goal"]
    options = [
        ("--data", dossier["data"]["source"]),
        *([("--preprocess", dossier["data"]["preprocess_file"])] if "preprocess_file" in dossier["data"] else []),
        ("--recipe", "recipe.yaml", "--budget", "0"),
        ("--target", dossier["target"]),
        ("--minimize", goal["minimize"]),
        ("--max-drop", f"{100 * goal['max_drop']:.6g}%", "--confidence", f"{100 * goal['confidence']:.6g}%"),
        *(("--keep", glob) for glob in dossier["keep"]),
        *([] if dossier["trainable"] else [("--no-train",)]),
        ("--seed", str(dossier["seed"])),
        ("--out", "replayed"),
    ]
    return " \\\n  ".join(shlex.join(words) for words in (("laconic", "shrink", dossier["model"]["source"]), *options))


def goal_in_words(dossier: JsonObject) -> str:
    """What was asked for."""
    goal = dossier["goal"]
    name = {"size": "the smallest file", "macs": "the fewest MACs"}.get(goal["minimize"], "the lowest latency")
    limits = [f"latency at most {_limit(goal['max_latency'], 'ms')}"] if goal["max_latency"] else []
    limits += [f"file at most {_limit(goal['max_size'], 'bytes')}"] if goal["max_size"] else []
    return ", ".join([name, f"a drop of at most {points(goal['max_drop'])} points", *limits])


def _limit(limit: JsonObject, unit: str) -> str:
    return f"{100 * limit['value']:.3g} % of the original's" if limit["relative"] else f"{limit['value']:g} {unit}"
