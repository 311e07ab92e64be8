"""A runtime for a device that has none: the wheels that fit it, from this machine's cache, unpacked there once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from edgeredux import wheels
from edgeredux.errors import EnvironmentProblem
from edgeredux.remote import files
from edgeredux.remote.channel import Channel, Place
from edgeredux.remote.job import Work
from edgeredux.remote.result import NoRuntime

D = TypeVar("D")


def with_runtime(go: Callable[[Channel, str, Work, Path], D], place: Place, work: Work, scratch: Path) -> D:
    """`go`'s answer; where the device has no runtime for the work's files, one is brought to it first.

    It stays in the device's `folder`/site for the next time. Raises EnvironmentProblem when none fits the device.
    """
    link = place.channel
    try:
        return go(link, place.folder, work, scratch)
    except NoRuntime as problem:
        named = [Path(path).suffix for path, _ in work.there.values()] + [path.suffix for path in work.models.values()]
        sites = [_bring(link, place.folder, suffix, problem) for suffix in sorted(set(named))]
        return go(link, place.folder, replace(work, site=tuple(sites)), scratch)


def _bring(link: Channel, folder: str, suffix: str, missing: NoRuntime) -> str:
    patience = files.Patience()
    found = files.look(link, f"{folder.rstrip('/')}/site", patience, names=True)
    kind = _kind(found, missing)
    reasons = []
    for packages in wheels.FOR[suffix]:
        try:
            fetched = wheels.fetch(kind, packages)
        except EnvironmentProblem as problem:
            reasons.append(str(problem))
            continue
        root = f"{found['path']}/{fetched[0].parent.name}"
        if not files.look(link, root, patience, names=True)["exists"]:
            files.push(link, root + ".wheels", {path.name: path for path in fetched}, patience)
            files.tell(link, "unpack", root + ".wheels", root)
        return root
    raise EnvironmentProblem(f"{missing}; and none could be brought: {'; '.join(reasons)}")


def _kind(found: dict[str, Any], missing: NoRuntime) -> wheels.Kind:
    library, _, version = str(found["libc"]).partition(" ")
    if library != "glibc":
        raise EnvironmentProblem(
            f"{missing}; wheels cannot be brought: the device has no glibc ({library or 'another'})"
        )
    return wheels.Kind(found["machine"], (found["python"][0], found["python"][1]), int(version.split(".")[1]))
