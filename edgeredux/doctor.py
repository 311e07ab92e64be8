"""Which runtimes, simulators, compilers, meters and devices this machine has, and the command that gives the rest."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeredux.arm64 import root


@dataclass(frozen=True)
class Finding:
    """One thing looked for. `install` is the exact command where it is missing."""

    name: str
    kind: Literal["runtime", "exporter", "compiler", "simulator", "meter", "device", "tool"]
    status: Literal["present", "missing", "unusable"]
    detail: str
    install: str | None = None


_PACKAGES: tuple[tuple[str, str, Literal["runtime", "exporter", "compiler", "simulator", "meter"], str], ...] = (
    ("ONNX Runtime", "onnxruntime", "runtime", "pip install onnxruntime"),
    ("LiteRT", "ai-edge-litert", "runtime", "pip install 'edgeredux[tflite]'"),
    ("onnxruntime-genai", "onnxruntime-genai", "runtime", "pip install 'edgeredux[genai]'"),
    ("PyTorch", "torch", "exporter", "pip install torch"),
    ("litert-torch", "litert-torch", "exporter", "pip install 'edgeredux[tflite]'"),
    ("ai-edge-quantizer", "ai-edge-quantizer", "exporter", "pip install 'edgeredux[tflite]'"),
    ("Optimum", "optimum-onnx", "exporter", "tools/optimum_env (an environment of its own)"),
    ("Vela (Arm Ethos-U)", "ethos-u-vela", "compiler", "pip install 'edgeredux[ethos-u]'"),
    ("Snapdragon HTP", "onnxruntime-qnn", "simulator", "pip install 'edgeredux[snapdragon]'"),
    ("zeus", "zeus", "meter", "pip install 'edgeredux[energy]'"),
)
INSTALLS = {"arm64-sim": "edgeredux.arm64.root:install"}  # what --install can build, and the function that does
_TOOLS: tuple[tuple[str, str, str], ...] = (
    ("adb", "adb", "apt-get install adb"),
    ("ssh (devices over the network)", "ssh", "apt-get install openssh-client"),
    ("sshd (to be reached as a device)", "sshd", "apt-get install openssh-server"),
    ("qemu for arm64", "qemu-aarch64-static", "apt-get install qemu-user-static"),
    ("Chromium (to look at reports)", "chromium", "apt-get install chromium"),
)


def examine() -> list[Finding]:
    """Everything looked for, in a fixed order. Reads metadata and device files only; starts nothing."""
    found = [_package(*row) for row in _PACKAGES]
    found += [_rapl(), _battery(), _nvidia()]
    found.append(_arm64())
    for name, command, install in _TOOLS:
        place = shutil.which(command) or shutil.which(command, path="/usr/sbin:/sbin")  # not on every user's PATH
        if place is None:
            found.append(Finding(name, "tool", "missing", "not on PATH", install))
        else:
            found.append(Finding(name, "tool", "present", command))
    return found


def _package(
    name: str, package: str, kind: Literal["runtime", "exporter", "compiler", "simulator", "meter"], install: str
) -> Finding:
    try:
        return Finding(name, kind, "present", importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, kind, "missing", "not installed in this environment", install)


def _arm64() -> Finding:
    place = root.place()
    if place.is_dir():
        return Finding("ARM64 without a board", "simulator", "present", place.name.replace("_", ", "))
    return Finding("ARM64 without a board", "simulator", "missing", "its root was not built", root.INSTALL)


def _rapl() -> Finding:
    zone = Path("/sys/class/powercap/intel-rapl:0/energy_uj")
    if not zone.exists():
        return Finding("CPU energy counter (RAPL)", "meter", "missing", "this machine exposes none")
    if not os.access(zone, os.R_OK):
        return Finding("CPU energy counter (RAPL)", "meter", "unusable", "not readable", f"sudo chmod a+r {zone}")
    return Finding("CPU energy counter (RAPL)", "meter", "present", "readable")


def _battery() -> Finding:
    batteries = sorted(Path("/sys/class/power_supply").glob("BAT*"))
    if not batteries:
        return Finding("battery", "meter", "missing", "this machine has none")
    return Finding("battery", "meter", "present", ", ".join(path.name for path in batteries))


def _nvidia() -> Finding:
    if not Path("/proc/driver/nvidia/version").is_file():
        return Finding("NVIDIA GPU", "device", "missing", "no driver loaded")
    return Finding("NVIDIA GPU", "device", "present", "driver loaded")
