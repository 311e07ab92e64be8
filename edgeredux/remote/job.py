"""A job for the agent: its folder put together, sent, run through lost connections, brought back, removed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import numpy as np

from edgeredux import agent, delegates, machine, rounds
from edgeredux.agent import process
from edgeredux.artifact import sha256_file
from edgeredux.errors import ArtifactError, EdgereduxError, EnvironmentProblem, StorageError, one_line
from edgeredux.remote import files, result
from edgeredux.remote.channel import Channel, Dropped
from edgeredux.seams import Feed

R = TypeVar("R", bound=result.Outputs)
Wanted: TypeAlias = Literal["measurements", "answers"]
_WAIT_S = 20.0
_ALONG = (machine, delegates, rounds)  # of the package, what the agent uses
_CLEANINGS = 3  # tries to take a job's folder away
_EMPTY = "# edgeredux's agent: only what runs on a device\n"


@dataclass(frozen=True)
class Work:
    """What the agent is to do. Feeds by label, as a ProfileJob's.

    `there`: models that the device holds already, label -> (absolute path there, SHA-256).
    `site`: folders there with runtimes that were brought along.
    """

    models: Mapping[str, Path]
    latency: Mapping[str, Sequence[Feed]]
    quality: Mapping[str, Sequence[Feed]]
    threads: int
    repeats: int
    warmup: int
    options: Mapping[str, str]
    there: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    site: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        return (*self.models, *self.there)


@dataclass(frozen=True)
class Done(Generic[R]):
    """What came back: the agent's result, outputs by label, bytes sent, connections lost on the way."""

    result: R
    outputs: Mapping[str, list[Feed]]
    sent_bytes: int
    lost: int
    left_there: str | None  # why the job's folder is still on the device


def run(link: Channel, folder: str, work: Work, scratch: Path) -> Done[result.Result]:
    """Measure on the device, in `folder`/jobs there, which holds nothing of it afterwards, or it is said why it does.

    The same work finds what an earlier, interrupted call left there, and goes on. Raises ArtifactError on a model the
    device's runtime does not take, StorageError on a full disk, EnvironmentProblem on what is missing or was killed.
    """

    def read(content: bytes) -> result.Result:
        return result.read(content, work.labels, work.repeats, link.host)

    return _run(link, folder, work, "measurements", scratch, read)


def answers(link: Channel, folder: str, work: Work, scratch: Path) -> Done[result.Answers]:
    """The same for the outputs of the quality feeds alone."""
    return _run(
        link, folder, work, "answers", scratch, lambda content: result.read_answers(content, work.labels, link.host)
    )


def _run(link: Channel, folder: str, work: Work, wanted: Wanted, scratch: Path, read: Callable[[bytes], R]) -> Done[R]:
    local = scratch / "device-job"
    shutil.rmtree(local, ignore_errors=True)
    local.mkdir(parents=True)
    sent = assemble(work, wanted, local)
    identity = hashlib.sha256((local / "job.json").read_bytes()).hexdigest()[:24]
    root = f"{folder.rstrip('/')}/jobs/{identity}"
    patience = files.Patience()
    sent_bytes = 0
    if not files.look(link, root, patience)["exists"]:
        sent_bytes = files.push(link, root, sent, patience)
    try:
        _to_the_end(link, root, patience)
        said = files.fetch(link, root, f"{process.OUT}/{process.RESULT}", local / "result.json", None, patience)
        found = read(said.read_bytes())
        outputs = {}
        for label, (name, digest) in found.outputs.items():
            path = files.fetch(link, root, f"{process.OUT}/{name}", local / "outputs.npz", digest, patience)
            outputs[label] = read_feeds(path)
    except BaseException as problem:
        left = _clean(link, root)
        if left and isinstance(problem, EdgereduxError):
            raise type(problem)(f"{problem}; {left}") from problem
        raise
    finally:
        shutil.rmtree(local, ignore_errors=True)
    return Done(found, outputs, sent_bytes, patience.total, _clean(link, root))


def assemble(work: Work, wanted: Wanted, local: Path) -> dict[str, Path]:
    """The job's files, name there -> path here; job.json and feeds are written into `local`."""
    sent: dict[str, Path] = {}
    for source in sorted(Path(agent.__file__).parent.glob("*.py")):
        sent[f"edgeredux/agent/{source.name}"] = source
    for module in _ALONG:
        sent[f"edgeredux/{Path(str(module.__file__)).name}"] = Path(str(module.__file__))
    (local / "package.py").write_text(_EMPTY, encoding="utf-8")
    sent["edgeredux/__init__.py"] = local / "package.py"
    models = {}
    for label, path in work.models.items():
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file")
        models[label] = f"models/{sha256_file(path)[:16]}/{path.name}"
        sent[models[label]] = path
        beside = path.with_name(path.name + ".data")
        if beside.is_file():
            sent[models[label] + ".data"] = beside
    said: dict[str, Any] = {"models": models, "latency": {}, "quality": {}}
    models.update({label: path for label, (path, _) in work.there.items()})
    for kind, given in (("latency", work.latency), ("quality", work.quality)):
        for label in models:
            written = write_feeds(given[label], local / "feeds.npz")
            name = f"feeds-{sha256_file(written)[:24]}.npz"
            sent[name] = written.replace(local / name)
            said[kind][label] = name
    said.update(threads=work.threads, repeats=work.repeats, warmup=work.warmup, options=dict(work.options))
    said.update(wanted=wanted, site=list(work.site))
    said["files"] = {**{name: sha256_file(path) for name, path in sorted(sent.items())}, **dict(work.there.values())}
    (local / "job.json").write_text(json.dumps(said, indent=1, sort_keys=True), encoding="utf-8")
    sent["job.json"] = local / "job.json"
    return sent


def write_feeds(feeds: Sequence[Feed], path: Path) -> Path:
    """The feeds as an .npz file of arrays "00000/input"; the same feeds give the same bytes."""
    arrays = {f"{number:05d}/{name}": value for number, feed in enumerate(feeds) for name, value in feed.items()}
    with path.open("wb") as handle:
        np.savez(handle, **arrays)  # type: ignore[arg-type]
    return path


def read_feeds(path: Path) -> list[Feed]:
    """What `write_feeds` wrote. Raises ArtifactError on a file that is no such thing."""
    found: dict[int, Feed] = {}
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as archive:
            for key in archive.files:
                number, _, name = key.partition("/")
                found.setdefault(int(number), {})[name] = archive[key]
    except Exception as problem:  # zipfile, zlib and NumPy raise a dozen classes of their own
        raise ArtifactError(
            one_line(f"{path.name}: the device sent outputs that cannot be read: {problem}")
        ) from problem
    return [found[number] for number in sorted(found)]


def _command(link: Channel, root: str, command: str, *more: str) -> dict[str, Any]:
    printed = link.run([link.python, "-B", "-c", process.BOOT, root, command, root, *more], patience_s=_WAIT_S + 60)
    try:
        return dict(json.loads(printed))
    except (ValueError, TypeError, RecursionError) as problem:
        raise EnvironmentProblem(f"{link.host}: the agent gave no answer but {printed[:80]!r}") from problem


def _to_the_end(link: Channel, root: str, patience: files.Patience) -> None:
    rebooted = 0
    while True:
        try:
            said = _command(link, root, "wait", str(_WAIT_S))
            patience.lost = 0
            if said["state"] == "done":
                return
            if said["state"] == "killed":
                raise EnvironmentProblem(
                    f"{link.host}: the agent was killed there while it worked (out of memory, or by hand); nothing of "
                    "it was kept, type the same command again"
                )
            if said["state"] == "rebooted":
                rebooted += 1
                if rebooted > 2:
                    raise EnvironmentProblem(f"{link.host}: started anew three times while the model ran")
            if said["state"] in ("absent", "rebooted"):
                _command(link, root, "start")
        except Dropped as problem:
            patience.again(problem)


def _clean(link: Channel, root: str) -> str | None:
    """Stop what runs and take the job's folder away; why it is still there, until the same work comes again."""
    why = ""
    for _ in range(_CLEANINGS):
        try:
            if files.tell(link, "state", root)["exists"]:
                _command(link, root, "stop")
            files.tell(link, "remove", root)
            return None
        except (EnvironmentProblem, StorageError) as problem:
            why = str(problem)
    return one_line(f"{root} was left on the device ({why})")
