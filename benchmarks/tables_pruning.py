"""The tables of docs/results.md about pruning: functions of run records."""

from __future__ import annotations

from benchmarks import records
from benchmarks.markdown import Row, record_table, speed, table
from laconic.report import words


def resnet56() -> str:
    """ResNet-56 with fewer channels, and below what was published."""
    columns = ["network", "fewer MACs", "top-1", "points lost", "at most (95 %)", "file"]
    whole: Row = {}

    def line(row: Row) -> list[str]:
        if "speed_to_float" not in row:
            whole.update(row)
            return ["float32", "1", f"{row['top1']:.2%}", "", "", words.size(row["file_bytes"]), "1", "1"]
        scored = [f"{row['top1']:.2%}", *_lost(row), words.size(row["file_bytes"])]
        faster = [speed(row["speed_to_float"][runtime]) for runtime in ("onnxruntime", "openvino")]
        cycles = [f"{step['epochs']:g}" for step in row["training"]["recipe"] if step["step"] == "FineTune"]
        trained = f"pruned, {' + '.join(cycles)} epochs"
        return [trained, f"**{whole['macs'] / row['macs']:.2f}x**", *scored, *faster]

    def below(found: Row) -> str:
        theirs, rows = found["published"], found["rows"]
        devices = dict.fromkeys(row["training"]["device"].replace("cpu", "a processor") for row in rows)
        published = ", ".join(f"{row['fewer_macs']:g}x fewer MACs {row['top1']:.2%}" for row in theirs["rows"])
        return (
            f"{rows[0]['n']:,} test pictures of CIFAR-10 (JPEG); trained on {' and, last, '.join(devices)}. "
            f"Published, on the exact pixels, not run here ([{theirs['who']}]({theirs['address']})): float32 "
            f"{theirs['top1_original']:.2%}, {published}."
        )

    return record_table("resnet56", [*columns, "faster on ONNX Runtime", "on OpenVINO"], line, below)


def sparse24() -> str:
    """ResNet-20 with 2:4 weights."""
    columns = ["weights", "top-1", "points lost", "at most (95 %)", "file"]

    def line(row: Row) -> list[str]:
        return [row["name"], f"{row['top1']:.2%}", *_lost(row), words.size(row["file_bytes"])]

    def below(found: Row) -> str:
        return (
            f"{found['rows'][0]['n']:,} test pictures of CIFAR-10 (JPEG). Size alone: on a processor the zeros are "
            "multiplied by like any other number."
        )

    return record_table("sparse24", columns, line, below)


def sparse24_speed() -> str:
    """What 2:4 weights bring on a graphics card."""
    columns = ["linear layers of", "tokens", "dense, ms", "2:4 over dense (95 %)", "weights"]

    def line(row: Row) -> list[str]:
        before, after = (words.size(size) for size in row["weight_bytes"])
        return [row["name"], f"{row['tokens']:,}", f"{row['dense_ms']:.3f}", speed(row["speed"]), f"{before} → {after}"]

    found = records.read("sparse24_speed")
    if not found:
        return "*Not measured yet: `python -m benchmarks.sparse24` on a machine with such a card.*"
    where = f"\n\nfloat16 on {found['card']}, {found['date']}; torch {found['torch']}."
    return table(columns, [line(row) for row in found["rows"]]) + where


def _lost(row: Row) -> list[str]:
    """The points lost and at most how many; nothing for the file that others are compared with."""
    if row["name"] == "float32":
        return ["", ""]
    return [words.points(row["drop"]), words.points_at_most(row["drop_at_most"])]
