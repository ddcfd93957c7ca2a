"""The tables of README.md and docs/results.md, written from the run records; ``python -m benchmarks.tables``.

A figure that no record holds is not written: the table says that the benchmark was not run.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from benchmarks import records
from benchmarks import tables_coverage as covered
from benchmarks import tables_mnist as smallest
from benchmarks import tables_packing as packed
from benchmarks import tables_pruning as pruning
from benchmarks import tables_quantization as few_bits
from benchmarks import tables_structure as structure
from benchmarks import tables_training as training
from benchmarks.markdown import NOT_RUN, Row, measured_on, points_at_least, table
from laconic.core import describe
from laconic.report import words

PAGES = (records.ROOT / "README.md", records.ROOT / "docs" / "results.md")


def write() -> None:
    """Put every table into its page."""
    for page in PAGES:
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")


def with_tables(text: str) -> str:
    """``text`` with what stands between ``<!-- table NAME -->`` and ``<!-- end -->`` made anew from the records."""

    def made(match: re.Match[str]) -> str:
        return f"<!-- table {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->.*?<!-- end -->", made, text, flags=re.DOTALL)


def results() -> str:
    """What laconic made of three networks."""
    rows = []
    demo, lenet, mobilenet = (records.read(name) for name in ("demo", "lenet", "mobilenet"))
    if demo:
        rows.append(_result("small CNN, digits (`make demo`)", demo["shrink"]))
    if lenet:
        rows.append(_result("LeNet-5-Caffe, MNIST", lenet["shrink"]))
    shrunk = [row["shrink"] for row in mobilenet["rows"] if "shrink" in row] if mobilenet else []
    rows += [_result("MobileNetV1 0.75, ImageNet, no training", shrink) for shrink in shrunk]
    columns = [
        "network, data",
        "runtime",
        "file",
        "smaller",
        "faster (95 % interval)",
        "drop, at most (95 %)",
        "allowed",
    ]
    return table(columns, rows) + measured_on(mobilenet or lenet or demo)


def _result(name: str, shrink: Row) -> list[str]:
    before, after, speed, proof = shrink["baseline"], shrink["best"], shrink["ratio"]["latency"], shrink["certificate"]
    files = f"{words.size(before['file_bytes'])} → {words.size(after['file_bytes'])}"
    faster = f"**{speed['value']:.2f}x** ({speed['low']:.2f}-{speed['high']:.2f})"
    proved = "not certified" if proof is None else f"{words.points_at_most(proof['bound'])} points, n = {proof['n']:,}"
    allowed = "" if proof is None else f"{100 * proof['max_drop']:g}"
    runtime = shrink["target"].partition(":")[0]
    return [name, runtime, files, f"**{shrink['ratio']['size']:.1f}x**", faster, proved, allowed]


def quantization() -> str:
    """INT8 on every network of the benchmarks, beside the best and the fastest peer."""
    found = records.read("quantization")
    if not found:
        return NOT_RUN
    rows = []
    for row in found["summary"]:
        to_float, to_peer = row["speed_to_float"], row["laconic_over_peer"]
        less = f"{words.points(row['difference'])} (at least {points_at_least(row['difference_low'])})"
        peer_speed = f"{to_peer['value']:.3f} ({to_peer['low']:.3f}-{to_peer['high']:.3f}), {row['fastest_peer']}"
        rows.append(
            [
                row["network"],
                row["target"],
                f"{row['n']:,}",
                f"**{row['agreement']:.2%}**",
                f"{row['best_peer_agreement']:.2%}, {row['best_peer']}",
                less,
                f"{to_float['value']:.2f}x",
                peer_speed,
            ]
        )
    columns = [
        "network, data",
        "runtime",
        "n",
        "laconic agrees with float32",
        "the peer that agrees most",
        "laconic less that peer, points (95 %)",
        "faster than float32",
        "laconic's speed over the fastest peer (95 %)",
    ]
    skipped = "".join(f"\n\nNot run: {name}: {reason}." for name, reason in found["skipped"].items())
    recipe = f"\n\nRecipe of all rows: {describe(found['recipe'])}."
    return table(columns, rows) + recipe + skipped + measured_on(found)


def factorize() -> str:
    """Every factorization of one network, fine-tuned, beside the float file."""
    found = records.read("factorize")
    if not found:
        return NOT_RUN
    whole = found["float"]
    rows = [["float32", "1", "1", words.size(whole["file_bytes"]), "", f"{whole['top1']:.2%}", "", ""]]
    pairs = [(alone, trained) for alone, trained in zip(found["rows"], found["rows"][1:], strict=False)]
    for alone, trained in pairs[::2]:
        speed = trained["speed_to_float"]
        rows.append(
            [
                trained["name"],
                f"**{whole['macs'] / trained['macs']:.1f}x**",
                f"**{speed['value']:.2f}x** ({speed['low']:.2f}-{speed['high']:.2f})",
                words.size(trained["file_bytes"]),
                f"{alone['top1']:.2%}",
                f"**{trained['top1']:.2%}**",
                words.points(trained["drop"]),
                words.points_at_most(trained["drop_at_most"]),
            ]
        )
    columns = [
        "factorization",
        "fewer MACs",
        "faster (95 % interval)",
        "file",
        "top-1 untrained",
        "top-1, one epoch",
        "drop, points",
        "at most (95 %)",
    ]
    behind = describe(found["rows"][1]["recipe"][1:])
    said = f"\n\n{found['network']}, n = {whole['n']:,}, ONNX Runtime; {behind} behind each."
    return table(columns, rows) + said + measured_on(found)


def certificate() -> str:
    """Does the certificate keep its word?"""
    found = records.read("certificate")
    if not found:
        return NOT_RUN
    rows = []
    for row in found["rows"]:
        if row["table"] == "search":
            wrong = f"{row['wrong']:,} of {row['searches']:,} ({row['wrong_allowed']} allowed)"
            kept = "yes" if row["passes"] else "**no**"
            rows.append([row["certificate"], row["records"], wrong, f"{row['power']:.1%}", kept])
    columns = ["certificate", "records", "certified though at the floor", "certified where true", "keeps its word"]
    return table(columns, rows)


def reliability() -> str:
    """What a kill costs, and how long the start takes."""
    kill, startup = records.read("kill"), records.read("startup")
    lines = []
    if kill:
        lost = sum(row["lost"] for row in kill["kills"])
        lines.append(
            f"- `kill -9` at {len(kill['kills'])} random moments of the LeNet search, then the same command again: "
            f"{lost} finished rows lost, {len(kill['repeated'])} repeated ({kill['trials']} trials, {kill['rows']} "
            f"rows). Told again from the ledger alone, it ends at the same winner: {describe(kill['winner'])}."
        )
    for row in startup["rows"] if startup else []:
        middle = row["seconds"][len(row["seconds"]) // 2]
        loaded = ", ".join(row["heavy"]) or "neither torch nor a runtime"
        lines.append(f"- `{row['command']}`: {middle:.2f} s, loads {loaded}.")
    return "\n".join(lines) or NOT_RUN


TABLES: dict[str, Callable[[], str]] = {
    "results": results,
    "quantization": quantization,
    "factorize": factorize,
    "mixed": few_bits.mixed,
    "criteria": structure.criteria,
    "netadapt": structure.netadapt,
    "energy": structure.energy,
    "certificate": certificate,
    "reliability": reliability,
    "peers": few_bits.peers,
    "vendors": few_bits.vendors,
    "ladder": few_bits.ladder,
    "w4": few_bits.w4,
    "weights": few_bits.weights,
    "resnet20": few_bits.resnet20,
    "cluster": few_bits.cluster,
    "resnet56": pruning.resnet56,
    "sparse24": pruning.sparse24,
    "sparse24_speed": pruning.sparse24_speed,
    "post_training": packed.post_training,
    "priced": packed.priced,
    "smallest": packed.smallest,
    "packing": packed.packing,
    "fuzz": packed.fuzz,
    "deep_compression": packed.deep_compression,
    "deep_compression_layers": packed.deep_compression_layers,
    "hashed": packed.hashed,
    "mnist_fixed": smallest.fixed,
    "mnist_free": smallest.free,
    "coverage": covered.coverage,
    "training_speed": training.speed,
    "training_quality": training.quality,
}

if __name__ == "__main__":
    write()
