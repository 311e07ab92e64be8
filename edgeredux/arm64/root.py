"""The arm64 root in the user's cache: built whole or not there, tried before it is put in place.

ROOT/usr ..            Debian's Python and C++ libraries, unpacked
ROOT/site/             the aarch64 wheels of ONNX Runtime and LiteRT, of this machine's versions
ROOT/cores/CORE/       links to the above, with that core's /proc/cpuinfo and /sys/devices/system/cpu
"""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
import zipfile
from pathlib import Path

from edgeredux import cache_folder, wheels
from edgeredux.arm64 import cores, debian, emulator
from edgeredux.errors import EnvironmentProblem, StorageError
from edgeredux.seams import Progress, silent

INSTALL = "edgeredux doctor --install arm64-sim"
RUNTIMES = ("onnxruntime", "ai-edge-litert")
_NEEDED_MB = 1000
_LINKED = ("bin", "lib", "sbin", "usr", "etc", "opt")
_TRIED = "import numpy, onnxruntime, ai_edge_litert.interpreter; print(onnxruntime.__version__)"


def place() -> Path:
    """Where the root for this machine's versions of the runtimes is, or would be."""
    versions = [f"{name}-{_version(name) or 'newest'}" for name in RUNTIMES]
    return cache_folder.of("arm64-sim") / "_".join((debian.RELEASE, *versions))


def require() -> Path:
    """The root. Raises EnvironmentProblem with the command that builds it."""
    if shutil.which(emulator.QEMU) is None:
        raise EnvironmentProblem(f"no {emulator.QEMU} here; install it with: apt-get install {emulator.PACKAGE}")
    found = place()
    if not found.is_dir():
        older = " (one for other versions of the runtimes is)" if any(found.parent.glob(f"{debian.RELEASE}_*")) else ""
        raise EnvironmentProblem(f"the arm64 root is not there{older}; build it with: {INSTALL}")
    return found


def install(progress: Progress = silent) -> Path:
    """Build the root unless it is there. Raises EnvironmentProblem naming everything that is missing, before any work,
    StorageError when the disk is too small.
    """
    found = place()
    _check(found)
    if found.is_dir():
        return found
    with tempfile.TemporaryDirectory(dir=found.parent, prefix=".building-") as name:
        fresh = Path(name, "root")
        fresh.mkdir()
        progress("arm64-sim: Debian's packages", 0, 4)
        for package in debian.fetch(Path(name, "apt")):
            debian.unpack(package, fresh)
        progress("arm64-sim: wheels", 1, 4)
        kind = wheels.Kind("aarch64", debian.PYTHON, debian.GLIBC)
        for wheel in {path.name: path for runtime in RUNTIMES for path in wheels.fetch(kind, [runtime])}.values():
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(fresh / "site")
        for core in cores.NAMES:
            _lay(fresh, core)
        progress("arm64-sim: try it", 2, 4)
        said = emulator.run(
            fresh, "cortex-a72", ["-c", f"import sys; sys.path.append({str(fresh / 'site')!r}); {_TRIED}"]
        )
        if said.code:
            raise EnvironmentProblem(f"the arm64 root was built and does not work: {said.words or said.code}")
        progress("arm64-sim: put in place", 3, 4)
        try:
            fresh.rename(found)
        except OSError:
            if not found.is_dir():  # another process was faster
                raise
    progress("arm64-sim", 4, 4)
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _check(found: Path) -> None:
    absent = debian.missing()
    if shutil.which(emulator.QEMU) is None:
        absent.append((emulator.QEMU, emulator.PACKAGE))
    if absent:
        named, packages = (", ".join(dict.fromkeys(pair[i] for pair in absent)) for i in (0, 1))
        raise EnvironmentProblem(f"not here: {named}; install with: apt-get install {packages.replace(',', '')}")
    found.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(found.parent).free / 1e6
    if not found.is_dir() and free < _NEEDED_MB:
        raise StorageError(f"{found.parent}: {free:.0f} MB are free, the arm64 root takes {_NEEDED_MB}")


def _lay(root: Path, core: str) -> None:
    """The root as a process on this core sees it."""
    seen = root / "cores" / core
    (seen / "proc").mkdir(parents=True)
    (seen / "proc" / "cpuinfo").write_text(cores.cpuinfo(core), encoding="ascii")
    system = seen / "sys" / "devices" / "system" / "cpu"
    system.mkdir(parents=True)
    for name in ("possible", "present", "online"):
        (system / name).write_text(f"0-{cores.COUNT - 1}\n", encoding="ascii")
    for name in _LINKED:
        if (root / name).exists():
            (seen / name).symlink_to(Path("..", "..", name))
