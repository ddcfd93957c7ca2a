"""The tables of docs/results.md about structure: functions of run records."""

from __future__ import annotations

from typing import Any

from benchmarks import records
from benchmarks.markdown import NOT_RUN, Row, measured_on, speed, table
from laconic.report import words


def criteria() -> str:
    """Top-1 by criterion and recovery, after half of the MACs, or four of five weights, are gone at once."""
    found = records.read("criteria")
    if not found:
        return NOT_RUN
    known = {(row["network"], *_setting(row["recipe"][-1])): row for row in found["rows"]}
    rows = []
    for network, criterion in dict.fromkeys(key[:2] for key in known):
        mine = [known.get((network, criterion, *way)) for way in _WAYS]
        rows.append([network, criterion.replace("_", " "), *(f"{row['top1']:.2%}" if row else "" for row in mine)])
    floats = {row["network"]: f"{row['network']} {row['top1_float']:.2%}, n = {row['n']:,}" for row in found["rows"]}
    macs = [row["macs"] / row["macs_float"] for row in found["rows"] if row["recipe"][-1]["step"] == "PruneChannels"]
    skipped = "".join(f" Not run: {name}: {reason}." for name, reason in found["skipped"].items())
    below = (
        f"\n\nTop-1; float32: {'; '.join(floats.values())}. Channels: the same share of every group, and of "
        f"the attention heads, goes, {min(macs):.0%} to {max(macs):.0%} of the MACs are left. "
        f"Weights: {found['sparsity']:.0%} of every layer's are zero.{skipped}"
    )
    columns = ["network, data", "criterion", *_WAYS.values()]
    return table(columns, rows) + below + measured_on(found)


_WAYS = {
    ("PruneChannels", "none"): "channels",
    ("PruneChannels", "batch_norm"): "statistics anew",
    ("PruneChannels", "least_squares"): "least squares",
    ("PruneWeights", "none"): "weights",
    ("PruneWeights", "obs"): "OBS updates",
}


def _setting(step: Row) -> tuple[Any, ...]:
    """A step's criterion, its name, and how it recovers."""
    return step.get("criterion", "l2"), step["step"], step.get("recovery", step.get("update", "none"))


def netadapt() -> str:
    """NetAdapt on measured latency beside the same search on MACs, at equal drops allowed on search."""
    found = records.read("netadapt")
    if not found:
        return NOT_RUN
    rows = []
    for row in found["rows"]:
        if "allowed" in row:
            one, other = row["latency"], row["MACs"]
            rows.append(
                [
                    row["network"],
                    row["target"],
                    f"{100 * row['allowed']:g}",
                    f"{words.points(one['drop'])}, {words.points(other['drop'])}",
                    f"{one['macs'] / other['macs']:.2f}x",
                    speed(one["speed"]),
                    speed(other["speed"]),
                    f"**{speed(row['latency_over_macs'])}**",
                    f"{row['n']:,}",
                ]
            )
    columns = [
        "network, data",
        "runtime",
        "allowed on search, points",
        "lost on holdout, points: by latency, by MACs",
        "MACs, by latency over by MACs",
        "faster, by latency",
        "faster, by MACs",
        "by latency over by MACs (95 %)",
        "n",
    ]
    skipped = "".join(f"\n\nNot run: {name}: {reason}." for name, reason in found["skipped"].items())
    return table(columns, rows) + skipped + measured_on(found)


def energy() -> str:
    """Where the modelled energy is, beside the smallest magnitudes."""
    found = records.read("energy")
    if not found:
        return NOT_RUN
    rows = [_energy(row) for row in found["rows"] if "allowed" in row]
    columns = [
        "network, data",
        "allowed on search, points",
        "energy left",
        "magnitude order",
        "over ours",
        "magnitude order, least squares",
        "over ours",
        "top-1 of the three; float32",
        "n",
    ]
    skipped = "".join(f" Not run: {name}: {reason}." for name, reason in found["skipped"].items())
    return table(columns, rows) + f"\n\nEnergies are modelled.{skipped}" + measured_on(found)


def _energy(row: Row) -> list[str]:
    whole = {"energy": 1.0, "top1": row["top1_float"]}  # what an order leaves that keeps to the drop nowhere
    ours, *others = (row.get(order, whole) for order in ("energy", "magnitude", "magnitude, least squares"))
    cells = [f"{ours['energy']:.1%}"]
    for other in others:
        cells += [f"{other['energy']:.1%}", f"**{other['energy'] / ours['energy']:.2f}x**"]
    scores = ", ".join(f"{one['top1']:.2%}" for one in (ours, *others))
    allowed = f"{100 * row['allowed']:g}"
    return [row["network"], allowed, *cells, f"{scores}; {row['top1_float']:.2%}", f"{row['n']:,}"]
