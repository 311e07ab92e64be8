"""Debian's arm64 packages and all they need, fetched by apt in a folder of its own and unpacked; root is not needed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from edgeredux.errors import EnvironmentProblem, one_line

RELEASE, PYTHON, GLIBC = "bookworm", (3, 11), 36
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SOURCE = f"deb [arch=arm64 signed-by={KEYRING}] http://deb.debian.org/debian {RELEASE} main\n"
_PACKAGES = ("python3-minimal", "libpython3.11-stdlib", "libstdc++6", "libgomp1", "zlib1g")


def missing() -> list[tuple[str, str]]:
    """(what this machine lacks to fetch and unpack them, Debian's package that has it)."""
    found = [(name, package) for name, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")) if not shutil.which(name)]
    return found if KEYRING.is_file() else [*found, (str(KEYRING), "debian-archive-keyring")]


def fetch(folder: Path) -> list[Path]:
    """The .deb files, their signatures checked by apt. Raises EnvironmentProblem, one line, when apt fails."""
    for name in ("lists/partial", "archives/partial", "etc"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "etc" / "sources.list").write_text(_SOURCE, encoding="ascii")
    _apt(folder, "update")
    _apt(folder, "--yes", "--download-only", "--no-install-recommends", "install", *_PACKAGES)
    return sorted((folder / "archives").glob("*.deb"))


def unpack(package: Path, root: Path) -> None:
    """The package's files below `root`; none of its scripts is run."""
    done = subprocess.run(
        ["dpkg-deb", "--extract", str(package), str(root)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise EnvironmentProblem(one_line(f"{package.name}: cannot be unpacked: {done.stderr}"))


def _apt(folder: Path, *command: str) -> None:
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Dir::State": folder,
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder,
        "Dir::Cache::archives": folder / "archives",
        "Dir::Etc::sourcelist": folder / "etc" / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Acquire::Languages": "none",
        "pkgCacheGen::Essential": "none",  # only what was asked for and what that needs
        "Debug::NoLocking": "1",
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    done = subprocess.run(
        ["apt-get", "-qq", *options, *command],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        check=False,
    )
    # What cannot be fetched is only a warning of `update`; without any list there is nothing to go on with.
    if done.returncode or not any((folder / "lists").glob("*_Packages*")):
        said = [line for line in done.stderr.splitlines() if line[:2] in ("E:", "W:")] or [
            f"exit code {done.returncode}"
        ]
        raise EnvironmentProblem(one_line(f"Debian's arm64 packages could not be had: {said[0]}", 300))
