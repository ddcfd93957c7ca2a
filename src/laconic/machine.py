"""What this machine is: its processor, what that can do, and a fingerprint that latencies belong to."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil

from laconic.core import JsonObject, digest

FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI (fast INT8)",
    "avx512_vnni": "AVX-512 VNNI (fast INT8)",
    "avx512_bf16": "AVX-512 bf16",
    "amx_int8": "AMX INT8",
    "amx_bf16": "AMX bf16",
    "asimddp": "Arm dot product (fast INT8)",
    "i8mm": "Arm INT8 matrix multiply",
    "bf16": "Arm bf16",
}
"""The processor flags that decide what is fast, and what they mean."""


@functools.cache
def cpu_flags() -> frozenset[str]:
    """The flags of :data:`FEATURES` that the processor has; empty where the system does not tell."""
    known = set(FEATURES)
    return frozenset(known & set(_cpuinfo().get("flags", "").split()))


@functools.cache
def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if path.exists():
        rows = [line.split(":", 1) for line in path.read_text().splitlines() if ":" in line]
        info = {name.strip(): value.strip() for name, value in reversed(rows)}
        return {"flags": info.get("flags", info.get("Features", "")), "model": info.get("model name", "")}
    if sys.platform == "darwin":
        names = {"hw.optional.arm.FEAT_DotProd": "asimddp", "hw.optional.arm.FEAT_I8MM": "i8mm"}
        found = [flag for name, flag in names.items() if _sysctl(name) == "1"]
        return {"flags": " ".join(found), "model": _sysctl("machdep.cpu.brand_string")}
    return {}


def _sysctl(name: str) -> str:
    result = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
    return result.stdout.strip()


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> JsonObject:
    """The machine in words, without its name: processor, what it can do, cores, memory, system."""
    return {
        "processor": _cpuinfo().get("model") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "features": sorted(cpu_flags()),
        "cores": cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
    }


def fingerprint() -> str:
    """A hash of what a latency depends on; another system update is the same machine, another processor is not."""
    machine = describe()
    return digest([machine[name] for name in ("processor", "architecture", "features", "cores", "memory_gib")])
