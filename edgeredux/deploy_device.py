"""Installing on another device: sent beside its place, proven there, then renamed into it.

`TO.installing` there is filled first (from `TO.installing.incoming`, where a lost connection goes on), every hash
checked by the device; the device's own runtime answers the bundle's sample inputs from it; install.json, which says
how well, is added; one rename puts the folder in its place. Until then TO is not there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeredux import bundle, parity
from edgeredux.errors import BundleError, EdgereduxError, StorageError
from edgeredux.remote import bring, files, job
from edgeredux.remote.channel import Channel, Dropped, Place
from edgeredux.seams import Feed, Progress, Tolerance

_SAME = Tolerance("the same bytes; only the order of additions may differ", atol=1e-4, rtol=1e-4)
# Tried next: another processor has other kernels, and int8 values at the edge of rounding fall on the other side.
_OTHER = Tolerance("the same bytes under another processor's kernels", atol=0.05, rtol=0.05, cosine=0.999)
_NOTE = "install.json"
_LABEL = "installed"


@dataclass(frozen=True)
class Wanted:
    """What to install: the model file in a folder of just what is to be there, sample inputs, what the bundle answers
    to them, and what install.json says so far.
    """

    model: Path
    feeds: Sequence[Feed]
    answers: Sequence[Feed]
    said: Mapping[str, Any]


def install(place: Place, wanted: Wanted, to: str, scratch: Path, progress: Progress) -> dict[str, Any]:
    """What install.json says, whether the answers agreed (`passed`) and `how`.

    Raises BundleError when something is at `to` already, StorageError when the device's disk is full,
    EnvironmentProblem when it cannot be reached or has no runtime for the file. The same call goes on after a
    connection that stayed lost; after other errors nothing of it is on the device.
    """
    link, patience = place.channel, files.Patience()
    to = to if to.startswith("/") or not place.below else f"{place.below}/{to}"
    progress("deploy: look at the device", 0, 4)
    there = files.look(link, to, patience)
    if there["taken"]:
        raise BundleError(f"{link.host}: {there['path']} is not empty; nothing is overwritten, choose another --to")
    to, stage = there["path"], there["path"] + ".installing"
    listed = bundle.list_files(wanted.model.parent)
    sent = {item["path"]: wanted.model.parent / item["path"] for item in listed}
    try:
        progress("deploy: send", 1, 4)
        sent_bytes = _fill(link, stage, sent, patience)
        progress("deploy: prove", 2, 4)
        done = bring.with_runtime(job.answers, place, _work(place, wanted, stage), scratch)
        agreement = parity.compare(wanted.answers, done.outputs[_LABEL], _SAME)
        if not agreement["passed"]:
            agreement = parity.compare(wanted.answers, done.outputs[_LABEL], _OTHER)
        answer = done.result.answers[_LABEL]
        by = f"{answer.runtime} on {answer.cpu_model}"
        said = {**wanted.said, "parity": agreement, "answered_by": by, "files": listed}
        note = scratch / _NOTE
        note.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        progress("deploy: put in place", 3, 4)
        sent_bytes += files.add(link, stage, {_NOTE: note}, patience)
        files.commit(link, stage, to, {**sent, _NOTE: note}, patience)
    except EdgereduxError as problem:
        if not isinstance(problem, (Dropped, files.GaveUp)):
            _take_away(link, stage)
        raise
    progress("deploy", 4, 4)
    more = {"passed": bool(agreement["passed"]), "how": f"{how(agreement, len(wanted.feeds))} ({by})"}
    return {**said, **more, "device": link.host, "sent_bytes": sent_bytes, "lost": patience.total + done.lost}


def how(agreement: Mapping[str, Any], count: int) -> str:
    """The verdict of a comparison in words."""
    if agreement["passed"]:
        return f"{count} inputs answered as in the bundle"
    return f"its answers differ from the bundle's: {agreement['reason']}"


def _work(place: Place, wanted: Wanted, stage: str) -> job.Work:
    return job.Work(
        models={},
        latency={_LABEL: ()},
        quality={_LABEL: wanted.feeds},
        threads=2,
        repeats=0,
        warmup=0,
        options=place.options,
        there={_LABEL: (f"{stage}/{wanted.model.name}", wanted.said["sha256"])},
    )


def _fill(link: Channel, stage: str, sent: Mapping[str, Path], patience: files.Patience) -> int:
    """Bring the files into `stage`, unless an earlier call did; the bytes sent."""
    have = files.look(link, stage, patience)
    if have["taken"]:
        found = {name: digest for name, (_, digest) in have["files"].items() if name != _NOTE}
        if found == files.hashes(sent):
            return 0
        files.tell(link, "remove", stage)
    return files.push(link, stage, sent, patience)


def _take_away(link: Channel, stage: str) -> None:
    try:
        files.tell(link, "remove", stage)
    except (EdgereduxError, StorageError):
        return  # the error that brought us here says more; the same command begins by looking at what is left
