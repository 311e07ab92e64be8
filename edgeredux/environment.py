"""What a report says of the machine and the versions it came from. No path, no user name, no host name."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

from edgeredux import __version__

PACKAGES = (
    "torch",
    "transformers",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-qnn",
    "litert-torch",
    "ai-edge-litert",
    "ai-edge-quantizer",
    "ethos-u-vela",
    "zeus",
    "optimum-onnx",
    "numpy",
    "safetensors",
)


def describe() -> dict[str, Any]:
    """Versions and hardware as readable here; what is not readable is absent from the mapping."""
    found: dict[str, Any] = {
        "edgeredux": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "byte_order": sys.byteorder,
        "packages": versions(),
    }
    cpu = cpu_name()
    if cpu:
        found["cpu"] = cpu
    return found


def versions() -> dict[str, str]:
    """Versions of the installed packages that shape the result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str | None:
    """The CPU's own name, where the system says it."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip() or None
    return platform.processor() or None
