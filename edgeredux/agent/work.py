"""A job on the device: every hash checked, each file alone for its memory, all together for time, energy, outputs.

job.json: {"models": {label: path}, "latency": {label: feeds}, "quality": {label: feeds}, "files": {path: sha256},
"threads", "repeats", "warmup", "options": {"optimization", "resolver"}, "wanted": measurements or answers, "site":
folders with runtimes that were brought along}. Feeds are .npz files, arrays named "00000/input". Result:
out/result.json, {"alone": {label: ..}, "together": .., "outputs": {label: [file, sha256]}}, or for answers alone
{"answers": {label: ..}, "outputs": ..}, or {"error", "kind"}; and the outputs' files.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeredux import machine, rounds
from edgeredux.agent import condition, energy, process, runtimes
from edgeredux.agent.store import _FULL, digest

if TYPE_CHECKING:
    from collections.abc import Callable

_MEMORY_RUNS = 3  # the first allocates, the others would show growth


def supervise(job: Path) -> None:
    """Run each part in a process of its own and write the result, whatever happens to them."""
    said = json.loads((job / "job.json").read_text(encoding="utf-8"))
    answer: dict[str, Any]
    try:
        for path, wanted in said["files"].items():
            if digest(job / path) != wanted:
                raise runtimes.Unusable(f"{path} is not the file that was sent (its SHA-256 differs)")
        if said["wanted"] == "answers":
            answer = {"answers": {label: _part(job, "answers", label) for label in said["models"]}}
            written = {label: found.pop("written") for label, found in answer["answers"].items()}
        else:
            answer = {"alone": {label: _part(job, "alone", label) for label in said["models"]}}
            answer["together"] = _part(job, "together")
            written = answer["together"].pop("written")
        answer["outputs"] = {label: [name, digest(job / process.OUT / name)] for label, name in written.items()}
    except runtimes.Unusable as problem:
        answer = {"error": str(problem), "kind": problem.kind}
    except OSError as problem:
        answer = _broken(problem)
    process.write_atomic(job / process.OUT / process.RESULT, json.dumps(answer))


def _part(job: Path, command: str, *more: str) -> dict[str, Any]:
    place = job / process.OUT / ("-".join((command, *more)) + ".json")
    place.unlink(missing_ok=True)
    log = job / process.OUT / "log.txt"
    with log.open("ab") as sink:
        began = sink.tell()
        code = subprocess.call(
            process.command(job, command, str(job), *more), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
        )
    if place.is_file():
        answer: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        if "error" in answer:
            raise runtimes.Unusable(answer["error"], answer["kind"])
        return answer
    why = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    if code == -signal.SIGKILL:
        why += " (out of memory?)"
    with log.open("rb") as sink:
        sink.seek(began)
        tail = " ".join(sink.read()[-300:].decode("utf-8", "replace").split())
    raise runtimes.Unusable(f"the process that ran the model ended with {why} {tail}", "crashed")


def child(job: Path, name: str, work: Callable[[], dict[str, Any]]) -> int:
    """Write what `work` answers, or why it could not, to out/NAME.json."""
    _die_with_parent()
    try:
        answer = work()
    except runtimes.Unusable as problem:
        answer = {"error": str(problem), "kind": problem.kind}
    except OSError as problem:
        answer = _broken(problem)
    process.write_atomic(job / process.OUT / (name + ".json"), json.dumps(answer))
    return 0


def _broken(problem: OSError) -> dict[str, Any]:
    kind = "no_space" if problem.errno in _FULL else "crashed"
    return {"error": "{}: {}".format(problem.filename or "the job's folder", problem.strerror), "kind": kind}


def _die_with_parent() -> None:
    parent = os.getppid()
    try:
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    except (ImportError, OSError, AttributeError):
        return  # `stop` kills the whole session instead
    if os.getppid() != parent:
        os._exit(1)


def _job(job: Path) -> dict[str, Any]:
    said = dict(json.loads((job / "job.json").read_text(encoding="utf-8")))
    sys.path.extend(place for place in said["site"] if place not in sys.path)  # after what the device has itself
    return said


def _load(job: Path, said: dict[str, Any], label: str) -> runtimes.Loaded:
    return runtimes.load(job / said["models"][label], said["threads"], said["options"])


def _feeds(job: Path, name: str) -> list[dict[str, Any]]:
    import numpy as np

    feeds: dict[int, dict[str, Any]] = {}
    with np.load(str(job / name), allow_pickle=False) as archive:
        for key in archive.files:
            number, _, port = key.partition("/")
            feeds.setdefault(int(number), {})[port] = archive[key]
    return [feeds[number] for number in sorted(feeds)]


def alone(job: Path, label: str) -> dict[str, Any]:
    """Peak memory of loading and running one file above that with the runtime imported, and who ran its operators."""
    said = _job(job)
    path = job / said["models"][label]
    feed = [*_feeds(job, said["latency"][label]), *_feeds(job, said["quality"][label])][0]
    runtime = runtimes.runtime_for(path)
    memory = machine.PeakMemory().start()
    model = _load(job, said, label)
    fitted = model.fit(feed)
    for _ in range(_MEMORY_RUNS):
        model.run(fitted)
    found = {
        "memory_mb": memory.mb(),
        "how": f"peak resident memory of a process of its own while it loads the file and runs it {_MEMORY_RUNS} "
        f"times, above that with {runtime} imported ({memory.how})",
        "runtime": runtime,
    }
    found.update(runtimes.placement(path, said["threads"], said["options"], feed, job / process.OUT))
    return found


def together(job: Path) -> dict[str, Any]:
    """Interleaved milliseconds by label, energy by label, the machine; outputs go to files, by label too."""
    said = _job(job)
    models = {label: _load(job, said, label) for label in said["models"]}
    fitted = {}
    for label, model in models.items():
        fitted[label] = [model.fit(feed) for feed in _feeds(job, said["latency"][label])]
    before = condition.now()
    calls = {label: _cycling(models[label].run, fitted[label]) for label in models}
    samples, facts = rounds.timed(calls, said["repeats"], said["warmup"])
    facts.update(condition.between(before, condition.now()))
    spent = energy.of_each({label: _once(call) for label, call in calls.items()})
    written = {label: _answer(job, said, label, models[label]) for label in models}
    return {
        "samples_ms": samples,
        "machine": facts,
        "energy": spent,
        "written": written,
        "python": sys.version.split()[0],
    }


def answers(job: Path, label: str) -> dict[str, Any]:
    """One file's outputs go to a file; which runtime made them. Nothing is measured."""
    said = _job(job)
    runtime = runtimes.runtime_for(job / said["models"][label])
    written = _answer(job, said, label, _load(job, said, label))
    return {"runtime": runtime, "python": sys.version.split()[0], "cpu_model": machine.cpu_model(), "written": written}


def _answer(job: Path, said: dict[str, Any], label: str, model: runtimes.Loaded) -> str:
    """Write the outputs of a label's quality feeds; the file's name."""
    import numpy as np

    arrays = {}
    for index, feed in enumerate(_feeds(job, said["quality"][label])):
        for name, value in model.run(model.fit(feed)).items():
            if not name.startswith("present."):  # what a decoder keeps for its next token measures no quality
                arrays[f"{index:05d}/{name}"] = value
    name = f"{list(said['models']).index(label):02d}.npz"
    with (job / process.OUT / name).open("wb") as handle:
        np.savez(handle, **arrays)
    return name


def _cycling(run: Callable[[Any], Any], feeds: list[Any]) -> Callable[[int], Any]:
    return lambda number: run(feeds[number % len(feeds)])


def _once(call: Callable[[int], Any]) -> Callable[[], Any]:
    return lambda: call(0)
