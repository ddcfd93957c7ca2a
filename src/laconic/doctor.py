"""What is installed, what each missing extra would give, every step with its settings, what the processor can do."""

from __future__ import annotations

import importlib.metadata
from dataclasses import MISSING, fields
from typing import Any

from laconic import __version__, console, machine
from laconic.core import JsonObject

EXTRAS = {
    "openvino": ("openvino", "the target openvino:cpu; fastest on Intel processors, bf16"),
    "litert": ("litert-torch", "the target litert:cpu; INT8 for phones and boards, as .tflite"),
    "executorch": ("executorch", "the target executorch:cpu; INT8 for phones and boards, as .pte"),
    "tensorrt": ("tensorrt", "the target tensorrt:cuda; INT8 on NVIDIA GPUs"),
    "torchvision": ("torchvision", "models as torchvision:NAME"),
    "timm": ("timm", "models as timm:NAME"),
    "parquet": ("pyarrow", "data sets in .parquet files"),
}
"""Extra -> (distribution, what it gives)."""

CORE = ("torch", "onnx", "onnxruntime", "numpy", "scipy", "scikit-learn")


def examine() -> JsonObject:
    """Everything that ``laconic doctor`` tells, as JSON."""
    from laconic.core import Target
    from laconic.runtime import RUNTIMES, named
    from laconic.steps import STEPS

    targets = {}
    for name in RUNTIMES:
        runtime = named(name)
        traits = runtime.traits(Target(name, runtime.DEVICES[0]))
        targets[name] = {
            "devices": list(runtime.DEVICES),
            "integer_operators": sorted(traits.integer_operators),
            "weight_bits": traits.weight_bits,
            "weight_kernels": sorted(traits.weight_kernels),
            "precisions": list(traits.precisions),
        }
    return {
        "laconic": __version__,
        "machine": machine.describe(),
        "features": {flag: flag in machine.cpu_flags() for flag in machine.FEATURES},
        "installed": {name: _version(name) for name in CORE},
        "extras": {extra: {"version": _version(name), "gives": gives} for extra, (name, gives) in EXTRAS.items()},
        "targets": targets,
        "steps": {name: _settings(step) for name, step in STEPS.items()},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _settings(step: Any) -> dict[str, Any]:
    return {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(step)}


def print_found(found: JsonObject) -> None:
    """The same for people."""
    here = found["machine"]
    console.say(f"laconic {found['laconic']}, Python {here['python']}, {here['system']} {here['architecture']}")
    console.say(f"{here['processor']}, {here['cores']} cores, {here['memory_gib']} GiB")
    features = [[machine.FEATURES[flag], "yes" if has else "-"] for flag, has in found["features"].items()]
    console.table("processor", ["feature", ""], features)
    libraries = [[name, version or "MISSING", "needed"] for name, version in found["installed"].items()]
    for extra, row in found["extras"].items():
        state = row["version"] or f"pip install 'laconic[{extra}]'"
        libraries.append([extra, state, row["gives"]])
    console.table("libraries", ["name", "version", "gives"], libraries)
    targets = []
    for name, traits in found["targets"].items():
        integers = f"INT8 ({traits['weight_bits']} bit weights)" if traits["integer_operators"] else "-"
        alone = ", ".join(f"{bits} bit" for bits in traits["weight_kernels"]) or "-"
        targets.append([f"{name}:{'|'.join(traits['devices'])}", integers, alone, ", ".join(traits["precisions"])])
    console.table("targets", ["target", "integers", "weights alone", "floats"], targets)
    steps = [[name, ", ".join(f"{k}={v!r}" for k, v in settings.items())] for name, settings in found["steps"].items()]
    console.table("steps", ["step", "settings and their defaults"], steps)
