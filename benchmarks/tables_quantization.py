"""The tables of docs/results.md about quantization: functions of run records."""

from __future__ import annotations

from benchmarks.markdown import Row, points_at_least, record_table, speed
from benchmarks.networks import NETWORKS
from laconic.core import Recipe, describe
from laconic.report import words
from laconic.steps import STEPS


def peers() -> str:
    """MobileNetV1 beside the runtimes' own quantizers, after a search."""

    def line(row: Row) -> list[str]:
        bold = "**{}**" if row["name"] == "laconic" else "{}"
        return [
            row["target"],
            bold.format(row["name"]),
            bold.format(f"{row['agreement']:.2%}"),
            f"{row['top1']:.2%}",
            speed(row.get("speed_to_float")) or "1",
            speed(row.get("laconic_over_peer"), 3),
            words.size(row["file_bytes"]),
        ]

    columns = ["runtime", "quantizer", "agrees with float32", "top-1", "faster than float32"]

    def below(found: Row) -> str:
        return f"{found['calibration']} pictures for calibration, {found['rows'][0]['n']} held out, none used twice."

    return record_table("mobilenet", [*columns, "laconic's speed over it", "file"], line, below)


def vendors() -> str:
    """MobileNetV1 in LiteRT and ExecuTorch, beside the quantizers that come with them."""

    def line(row: Row) -> list[str]:
        bold = "**{}**" if row["name"] == "laconic" else "{}"
        return [
            row["target"],
            bold.format({"vendor": "the runtime's own"}.get(row["name"], row["name"])),
            bold.format(f"{row['agreement']:.2%}"),
            f"{row['top1']:.2%}",
            speed(row["speed_to_float"]) if row["name"] != "float32" else "1",
            speed(row["laconic_over_this"], 3) if row["name"] == "vendor" else "",
            words.size(row["file_bytes"]),
        ]

    columns = ["runtime", "quantizer", "agrees with float32", "top-1", "faster than float32", "laconic's speed over it"]
    return record_table("vendors", [*columns, "file"], line, _calibrated)


def ladder() -> str:
    """MobileNetV1 with one scale per weight tensor: what each rung brings."""
    columns = ["recipe", "agrees with float32", "gain, points", "top-1"]
    before = 0.0

    def line(row: Row) -> list[str]:
        nonlocal before
        if "agreement" not in row:
            return [row["name"], "", "", f"{row['top1']:.2%}"]
        rung = row["name"].startswith("+")
        gain = f"{100 * (row['agreement'] - before):+.1f}" if rung else ""
        before = row["agreement"]
        return [row["name"], f"{row['agreement']:.2%}", gain, f"{row['top1']:.2%}"]

    return record_table("ladder", columns, line, _calibrated)


def w4() -> str:
    """MobileNetV1 with weights of 4 bits, activations of 8."""
    columns = ["recipe", "agrees with float32", "top-1", "file", "seconds", "CPU seconds"]

    def line(row: Row) -> list[str]:
        numbers = [f"{row['agreement']:.2%}", f"{row['top1']:.2%}", words.size(row["file_bytes"])]
        return [row["name"], *numbers, f"{row['seconds']:.0f}", f"{row['cpu_seconds']:.0f}"]

    return record_table("w4", columns, line, _calibrated)


def mixed() -> str:
    """Mixed precision beside uniform precision of the same file size."""
    columns = ["network, data", "n", "uniform weights", "agree with float32", "mixed weights agree"]

    def line(row: Row) -> list[str]:
        uniform, other = row["uniform"], row["mixed"]
        same = uniform["bits"] == other["bits"]
        less = f"{words.points(row['difference'])} (at least {points_at_least(row['difference_low'])})"
        return [
            *(row["network"], f"{row['n']:,}", f"{row['width']} bits, {words.size(uniform['file_bytes'])}"),
            f"{uniform['agreement']:.2%}",
            "the same file" if same else f"**{other['agreement']:.2%}**, {words.size(other['file_bytes'])}",
            "" if same else less,
            ", ".join(f"{count} of {bits}" for bits, count in other["layers"].items()),
        ]

    def below(found: Row) -> str:
        skipped = "".join(f" Not run: {name}: {reason}." for name, reason in found["skipped"].items())
        missing = [name for name in NETWORKS if name not in found["networks"] and name not in found["skipped"]]
        later = f" Not run yet: {'; '.join(missing)}." if missing else ""
        return f"Recipe of all rows, bits apart: {describe(found['recipe'])}; activations of 8 bits.{skipped}{later}"

    return record_table("mixed", [*columns, "mixed less uniform, points (95 %)", "layers of bits"], line, below)


def weights() -> str:
    """The transformer's weights in few bits."""
    columns = ["runtime", "weights", "top-1", "points lost (95 %)", "file", "computed", "speed to float32 (95 %)"]

    def line(row: Row) -> list[str]:
        low, high = row["points_lost_interval"]
        lost = f"{row['points_lost']:.2f} ({low:.2f} to {high:.2f})" if row["name"] != "float32" else ""
        kernel = "speed_to_float" in row
        computed = "float32" if not kernel else "from the codes"
        runtime = row["target"].partition(":")[0]
        numbers = [f"{row['top1']:.2%}", lost, words.size(row["file_bytes"])]
        return [runtime, row["name"], *numbers, computed, speed(row.get("speed_to_float"))]

    def below(found: Row) -> str:
        return f"{found['network']['name']}, {found['rows'][0]['n']:,} test pictures of Fashion-MNIST."

    return record_table("weights", columns, line, below)


def resnet20() -> str:
    """ResNet-20 with weights of 4 bits and fewer."""
    columns = ["weights", "top-1", "points lost", "at most (95 %)", "file", ".lac", "smaller", "trained"]

    def line(row: Row) -> list[str]:
        lost = (
            ["", ""] if row["name"] == "float32" else [f"{100 * row['drop']:.2f}", f"{100 * row['drop_at_most']:.2f}"]
        )
        sizes = [words.size(row[name]) for name in ("file_bytes", "packed_bytes")]
        smaller = f"**{row['ratio']:.1f}x**"
        return [row["name"], f"{row['top1']:.2%}", *lost, *sizes, smaller, _schedule(row["training"])]

    def below(found: Row) -> str:
        skipped = "".join(f" Not run: {name}: {reason}." for name, reason in found["skipped"].items())
        stored = "stored in few bits, computed in float32 unless the activations have 8 bits"
        size = "*Smaller* is the packed file beside float32's"
        return f"{found['rows'][0]['n']:,} test pictures of CIFAR-10 (JPEG); {stored}. {size}.{skipped}"

    return record_table("resnet20", columns, line, below)


def cluster() -> str:
    """Weights that share values, and below what TensorFlow published."""
    columns = [
        "network",
        "weights",
        "top-1",
        "points lost",
        "at most (95 %)",
        "file",
        "bits per weight",
        "n",
        "trained",
    ]

    def line(row: Row) -> list[str]:
        least, most = row["bits_per_weight"]
        return [
            row["network"],
            row["name"],
            f"{row['top1_float']:.2%} → {row['top1']:.2%}",
            words.points(row["drop"]),
            words.points_at_most(row["drop_at_most"]),
            f"{words.size(row['file_bytes_float'])} → {words.size(row['file_bytes'])}",
            f"{least:.1f} to {most:.1f}",
            f"{row['n']:,}",
            _schedule(row["training"]),
        ]

    def below(found: Row) -> str:
        theirs = found["published"]
        lost = words.points(theirs["top1_original"] - theirs["top1"])
        skipped = "".join(f" Not run: {name}: {reason}." for name, reason in found["skipped"].items())
        return (
            "Stored in few bits and a codebook per layer, computed in float32; bits per weight of layers stored so, "
            f"codebooks included. Published, not run here ([{theirs['who']}]({theirs['address']})): {theirs['name']}, "
            f"{theirs['top1_original']:.2%} → {theirs['top1']:.2%}, {lost} points, "
            f"{theirs['zipped_mb_original']:g} MB → {theirs['zipped_mb']:g} MB zipped.{skipped}"
        )

    return record_table("cluster", columns, line, below)


def _schedule(told: Row) -> str:
    epochs = [e for step in Recipe.parse(told.get("recipe", []), STEPS).steps if (e := getattr(step, "epochs", 0))]
    return f"{epochs[0]:g} epochs on {told['device']}" if epochs and "device" in told else "no"


def _calibrated(found: Row) -> str:
    n = found.get("n") or found["rows"][0]["n"]
    return f"{found['calibration']} pictures for calibration, {n} held out, nothing trained on labels."
