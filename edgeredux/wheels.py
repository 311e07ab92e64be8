"""Wheels of another machine's kind, from PyPI into the user's cache: chosen by machine, Python and C library there.

pip does the choosing; the versions are this machine's own where it has the package, so that two runtimes which are
compared are of one version, else the newest that fits.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeredux import cache_folder
from edgeredux.errors import EnvironmentProblem, one_line

_OLDEST_GLIBC = 17  # manylinux2014, the oldest whose wheels are still made
# What runs a format: each line is tried in turn.
FOR = {
    ".onnx": (("onnxruntime",),),
    ".tflite": (("ai-edge-litert",), ("tflite-runtime==2.14.0", "numpy<2")),
}


@dataclass(frozen=True)
class Kind:
    """What decides which wheel fits: uname's machine, (major, minor) of Python, minor version of glibc 2."""

    machine: str
    python: tuple[int, int]
    glibc: int

    @property
    def name(self) -> str:
        return f"{self.machine}-py{self.python[0]}{self.python[1]}-glibc2.{self.glibc}"

    def platforms(self) -> list[str]:
        """pip's platform tags that run there, the newest first."""
        named = [f"manylinux_2_{minor}_{self.machine}" for minor in range(self.glibc, _OLDEST_GLIBC - 1, -1)]
        return [*named, f"manylinux2014_{self.machine}"]


def fetch(kind: Kind, packages: Sequence[str]) -> list[Path]:
    """The packages and all they need as wheel files, from the cache or else from PyPI.

    Raises EnvironmentProblem, one line, when there is no such wheel or no way to PyPI.
    """
    wanted = [_pinned(package) for package in packages]
    folder = (
        cache_folder.of("wheels")
        / f"{kind.name}-{'+'.join(name.replace('=', '').replace('<', '_') for name in wanted)}"
    )
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".wheels-") as name:
            try:
                _download(kind, wanted, Path(name))
            except EnvironmentProblem:
                if wanted == list(packages):
                    raise
                _download(kind, packages, Path(name))  # this machine's version is not made for that one
            with contextlib.suppress(OSError):  # another process may have been faster
                shutil.copytree(name, f"{name}.whole")
                Path(f"{name}.whole").rename(folder)
            shutil.rmtree(f"{name}.whole", ignore_errors=True)
    return sorted(folder.glob("*.whl"))


def _pinned(package: str) -> str:
    try:
        return (
            f"{package}=={importlib.metadata.version(package)}" if package.isidentifier() or "-" in package else package
        )
    except importlib.metadata.PackageNotFoundError:
        return package


def _download(kind: Kind, packages: Sequence[str], to: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise EnvironmentProblem(
            "wheels for another machine are fetched by pip, and this Python has none: python -m ensurepip"
        )
    version = f"{kind.python[0]}.{kind.python[1]}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", version, "--dest", str(to)]
    for platform in kind.platforms():
        command += ["--platform", platform]
    done = subprocess.run([*command, *packages], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        why = said[-1] if said else f"exit code {done.returncode}"
        raise EnvironmentProblem(
            one_line(f"no {' '.join(packages)} for {kind.machine} with Python {version} could be had from PyPI: {why}")
        )
