"""The tables of docs/results.md about packed files: functions of run records."""

from __future__ import annotations

from benchmarks import records
from benchmarks.markdown import NOT_RUN, Row, measured_on, record_table
from laconic.report import words


def packing() -> str:
    """The same files by every coder."""

    def line(row: Row) -> list[str]:
        sizes = [f"{row[name]:,}" if row[name] else "" for name in _SIZES]
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
            f"{found['compile_seconds']:.0f} s more.{published} Not run: NNCodec, which needs an environment of its own"
            f".{skipped}"
        )

    columns = ["network", "weights", "ONNX", "gzip", "xz", "zstd", "Huffman", ".lac", "of it weights"]
    return record_table("packing", [*columns, "packs in, s", "decodes in, s"], line, below)


_SIZES = ("file_bytes", "gzip_bytes", "xz_bytes", "zstd_bytes", "huffman_bytes")


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
