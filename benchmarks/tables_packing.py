"""The tables of docs/results.md about packed files: functions of run records."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks import records
from benchmarks.markdown import NOT_RUN, Row, measured_on, record_table, table
from laconic.core import describe
from laconic.report import words


def packing() -> str:
    """The same files by every coder."""

    def line(row: Row) -> list[str]:
        sizes = [f"{row[name]:,}" if row.get(name) else "" for name in _SIZES]
        return [row["network"], row["name"], *sizes, f"**{row['packed_bytes']:,}**", f"{row['payload_bytes']:,}"] + [
            f"{row[name]:.2f}" for name in ("pack_seconds", "unpack_seconds")
        ]

    def below(found: Row) -> str:
        published = "".join(
            f" {row['network']}, {row['name']}: its authors' file has {row['published_bytes']:,} bytes, the packed one "
            f"{1 - row['packed_bytes'] / row['published_bytes']:.1%} fewer."
            for row in found["rows"]
            if row["published_bytes"]
        )
        skipped = "".join(f" Not run: {name}: {reason}." for name, reason in found["skipped"].items())
        return (
            "Bytes of whole files; each comes back bit for bit. Seconds of one core; the first time, compiling takes "
            f"{found['compile_seconds']:.0f} s more.{published}{skipped}"
        )

    columns = ["network", "weights", "ONNX", "gzip", "xz", "zstd", "Huffman", "NNCodec", ".lac", "of it weights"]
    return record_table("packing", [*columns, "packs in, s", "decodes in, s"], line, below)


_SIZES = ("file_bytes", "gzip_bytes", "xz_bytes", "zstd_bytes", "huffman_bytes", "nncodec_bytes")


def post_training() -> str:
    """Packed files without training: weights at a price beside uniform ones."""

    def line(row: Row) -> list[str]:
        return [
            *(row["network"], f"{row['n']:,}", row["name"], f"{row['packed_bytes']:,}"),
            *(f"**{row['ratio']:.2f}x**", f"{row['agreement']:.2%}", f"{100 * _lost(row):.2f}"),
            *(f"{100 * row['drop']:.2f} (at most {100 * row['bound']:.2f})", f"{row['seconds']:.0f}"),
        ]

    def below(found: Row) -> str:
        skipped = "".join(f" Not run: {name}: {reason}." for name, reason in found["skipped"].items())
        return f"Bytes of whole `.lac` files, beside the original's ONNX file. No label was used.{skipped}"

    columns = ["network, data", "n", "weights", ".lac", "smaller", "agrees with float32", "points lost"]
    return record_table("post_training", [*columns, "on the holdout alone (95 %)", "seconds"], line, below)


def smallest() -> str:
    """Of each network the smallest packed file without training that has lost a point at most."""
    found = records.read("post_training")
    if not found:
        return NOT_RUN
    rows = [row for row in found["rows"] if _lost(row) <= _POINT]
    best = [
        min((row for row in rows if row["network"] == name), key=lambda row: row["packed_bytes"])
        for name in dict.fromkeys(row["network"] for row in rows)
    ]
    lines = [
        [
            *(row["network"], f"{words.size(row['ratio'] * row['packed_bytes'])} → {words.size(row['packed_bytes'])}"),
            *(f"**{row['ratio']:.1f}x**", f"{100 * _lost(row):.2f}", f"{row['n']:,}", f"{row['seconds']:.0f}"),
        ]
        for row in best
    ]
    columns = ["network, data", "ONNX → packed", "smaller", "points lost", "n", "seconds"]
    return table(columns, lines) + measured_on(found)


_POINT = 0.01


def priced() -> str:
    """A network trained under a price for its bytes."""

    def line(row: Row) -> list[str]:
        steps = describe(row["recipe"]) if row["recipe"] else ""
        lost = (
            "" if row["name"] == "float32" else f"{words.points(row['drop'])} (at most {100 * row['drop_at_most']:.2f})"
        )
        return [
            *(row["name"], steps, f"{row['packed_bytes']:,}", f"**{row['ratio']:.1f}x**"),
            *(f"{row['top1']:.2%}", lost, f"{row['n']:,}", f"{row['seconds']:.0f}"),
        ]

    def below(found: Row) -> str:
        return f"{found['network']}. Bytes of whole `.lac` files, beside the float network's ONNX file."

    columns = ["file", "recipe", ".lac", "smaller", "top-1", "points lost (95 %)", "n", "seconds"]
    return record_table("priced", columns, line, below)


def _lost(row: Row) -> float:
    """The share of all samples, those of search and of the holdout, that are no longer right."""
    n, n_holdout = row["n"], row["n_holdout"]
    lost: float = (row["search_drop"] * (n - n_holdout) + row["drop"] * n_holdout) / n
    return lost


def fuzz() -> str:
    """What became of the files that were tampered with."""
    found = records.read("fuzz")
    if not found:
        return NOT_RUN
    outcomes = ", ".join(f"{n:,} {name}" for name, n in sorted(found["outcomes"].items()))
    memory = f"{words.size(found['peak_bytes_more'])} of {words.size(found['declared_bytes'])} declared"
    return (
        f"{found['mutations']:,} mutations of a file of {found['packed_bytes']:,} bytes: {outcomes}; no crash. The "
        f"slowest took {found['slowest_seconds']:.2f} s; memory: {memory}.{measured_on(found)}"
    )


def deep_compression() -> str:
    """The paper's table 1 and laconic's means over the seeds."""
    found = records.read("deep_compression")
    if not found:
        return NOT_RUN
    rows = []
    for name, theirs in found["published"].items():
        ours = [row for row in found["rows"] if row["network"] == name]
        if not ours:
            continue
        bytes_float, size = theirs["bytes_float"], theirs["bytes"]
        errors = [f"{theirs[key]:.2%}" for key in ("error_float", "error")]
        rows.append([name, "the paper", *errors, f"{size:,}", f"{bytes_float / size:.0f}x", "", "", "", ""])
        errors = [_spread([row[key] for row in ours]) for key in ("test_error_float", "test_error")]
        packed, payload, paper, onnx, whole = (
            _mean(row[key] for row in ours)
            for key in ("packed_bytes", "payload_bytes", "paper_format_bytes", "file_bytes", "file_bytes_float")
        )
        sizes = [f"**{packed:,.0f}**", f"{whole / packed:.0f}x", f"{payload:,.0f}", f"{paper:,.0f}", f"{onnx:,.0f}"]
        rows.append([name, "laconic", *errors, *sizes, str(len(ours))])
    columns = ["network", "by", "float error", "error", "bytes", "smaller", "of it weights", "in the paper's format"]
    said = (
        "\n\nMeans over the seeds, in brackets the least and the largest; 10,000 test pictures, scored in ONNX Runtime "
        "from the file that the `.lac` decodes to. *Bytes* are the paper's as it states them, and the whole `.lac`."
    )
    return table([*columns, "ONNX file", "seeds"], rows) + said + measured_on(found)


def deep_compression_layers() -> str:
    """The paper's tables 2 and 3: what a layer's weights take, theirs / ours."""
    found = records.read("deep_compression")
    if not found:
        return NOT_RUN
    rows = []
    for name, published in found["published"].items():
        ours = [row for row in found["rows"] if row["network"] == name]
        for layer, theirs in published["layers"].items() if ours else []:
            mean = {key: _mean(row["layers"][layer][key] for row in ours) for key in ours[0]["layers"][layer]}
            codes = [next(p["packed"] for p in row["packed_rows"] if p["name"] == f"{layer}.weight") for row in ours]
            bits = [f"{theirs['weight_bits']} / {mean['weight_bits']:g}"]
            bits += [f"{theirs[key]:.1f} / {mean[key]:.1f}" for key in ("weight_code", "index_code")]
            in_bytes = f"{4 * mean['weights'] * theirs['rate']:,.0f} / {mean['bytes']:,.0f}"
            kept = f"{theirs['kept']:.0%} / {mean['kept']:.1%}"
            rows.append([name, layer, f"{mean['weights']:,.0f}", kept, *bits, in_bytes, f"{_mean(codes):,.0f}"])
    columns = ["network", "layer", "weights", "kept", "bits of a weight", "its Huffman code", "an index's"]
    said = (
        "\n\nThe paper's / laconic's, in the paper's format: indices of 5 bits before their Huffman codes, fillers, "
        "codebooks and code tables included, biases not. *Codes in the `.lac`*: the same weights as the arithmetic "
        "coder writes them, their codebook apart."
    )
    return table([*columns, "bytes", "codes in the `.lac`"], rows) + said


def hashed() -> str:
    """Hashed weights beside pruned and clustered ones."""
    found = records.read("hashed")
    if not found:
        return NOT_RUN
    rows = []
    for name in dict.fromkeys(row["name"] for row in found["rows"]):
        mine = [row for row in found["rows"] if row["name"] == name]
        sizes = [f"{_mean(row[key] for row in mine):,.0f}" for key in ("file_bytes", "packed_bytes", "payload_bytes")]
        rows.append([name, _spread([row["test_error"] for row in mine]), *sizes, str(len(mine))])
    whole = _spread([row["test_error_float"] for row in found["rows"]])
    said = f"\n\nLeNet-300-100, 10,000 test pictures; float: {whole}. Means over the seeds, the least and the largest."
    return (
        table(["weights", "error", "ONNX file", "`.lac`", "of it weights", "seeds"], rows) + said + measured_on(found)
    )


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _spread(shares: list[float]) -> str:
    return f"{_mean(shares):.2%} ({min(shares):.2%} to {max(shares):.2%})"
