"""A Linux device over ssh: its own runtime under our agent, everything measured there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux import measure
from edgeredux.artifact import Format
from edgeredux.errors import EnvironmentProblem
from edgeredux.readings import AnyReading, Missing, Reading
from edgeredux.remote import bring, files, job
from edgeredux.remote.channel import Dropped, Place
from edgeredux.remote.link import HOST_VARIABLE, Link
from edgeredux.remote.result import NotTaken, Result, Spent
from edgeredux.runners import inputs, options, together
from edgeredux.runners.litert import Resolver
from edgeredux.seams import DeviceProfile, ProfileJob

WHERE = "runner ssh"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Options:
    """What a target may set. What is left out, ssh_config decides; `host` may be absent and
    EDGEREDUX_SSH_HOST say [USER@]HOST[:PORT].

    `folder`: where the agent works there, below the home folder unless absolute. `optimization` is for .onnx files,
    `resolver` for .tflite ones, as in the runners onnxruntime and litert.
    """

    host: str = ""
    port: int = Field(default=0, ge=0, le=65535)
    user: str = ""
    key: str = ""
    known_hosts: str = ""
    python: str = "python3"
    folder: str = ".cache/edgeredux"
    optimization: Literal["all", "extended", "basic", "none"] = "all"
    resolver: Resolver = "xnnpack"


def link_of(given: Options, address: str = "") -> Link:
    """How to reach the device, checked. `address`, [USER@]HOST[:PORT], goes before the option and the environment.

    Raises EnvironmentProblem when no host is named.
    """
    host, port, user = given.host, given.port, given.user
    if address or not host:
        named = address or os.environ.get(HOST_VARIABLE, "")
        if not named:
            raise EnvironmentProblem(
                f"{WHERE}: no device is named; name it with --host USER@HOST:PORT, the target's option host or "
                f"{HOST_VARIABLE}"
            )
        before, at, after = named.rpartition("@")
        user = before if at else user
        host, colon, number = after.rpartition(":")
        if colon and number.isdigit() and ":" not in host:
            port = int(number)
        else:
            host = after
    link = Link(host, port, user, given.key, given.known_hosts, given.python)
    link.check()
    return link


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Ssh:
    """The agent goes along with the files, checks every hash, and works in a session of its own, so that it outlives a
    lost connection. Each file alone for memory and placement, then all together for time and energy, as the runners of
    this machine do. The device holds nothing of it afterwards; where it does, fact
    `left_there` says why.
    """

    formats: ClassVar[tuple[Format, ...]] = ("onnx", "tflite")

    def check(self, options_: Mapping[str, Any]) -> None:
        """Raise TargetError on wrong options, EnvironmentProblem, one line, on a device that cannot be used."""
        given = options.read(Options, options_, WHERE)
        link = link_of(given)
        try:
            found = files.tell(link, "state", f"{given.folder}/jobs/none")
        except Dropped as problem:
            raise EnvironmentProblem(f"{problem}; is the device on, and the address right?") from problem
        if tuple(found["python"]) < (3, 8):
            version = ".".join(map(str, found["python"]))
            raise EnvironmentProblem(f"{link.host}: {link.python} is Python {version}; the agent takes 3.8 or newer")

    def device(self, options_: Mapping[str, Any]) -> str:
        """USER@HOST:PORT as the options and EDGEREDUX_SSH_HOST name it; what is left out ssh_config says."""
        link = link_of(options.read(Options, options_, WHERE))
        return f"{link.user}@{link.host}:{link.port or ''}"

    def reach(self, options_: Mapping[str, Any], address: str) -> Place:
        """The way to the device; relative paths begin at the home folder there."""
        given = options.read(Options, options_, WHERE)
        taken = {"optimization": given.optimization, "resolver": given.resolver}
        return Place(link_of(given, address), given.folder, "", taken)

    def profile(self, job_: ProfileJob) -> dict[str, DeviceProfile]:
        """latency_ms, throughput_per_s and memory_mb measured there; energy_mj by the device's sensors, or Missing."""
        place = self.reach(job_.options, "")
        longest = max(inputs.distinct_shapes(job_.latency_feeds[label]) for label in job_.artifacts)
        work = job.Work(
            models=job_.artifacts,
            latency=job_.latency_feeds,
            quality=job_.quality_feeds,
            threads=job_.threads,
            repeats=job_.repeats,
            warmup=max(job_.warmup, longest),
            options=place.options,
        )
        done = bring.with_runtime(job.run, place, work, job_.scratch)
        return {label: _profile(job_, label, work, done) for label in job_.artifacts}


def _profile(job_: ProfileJob, label: str, work: job.Work, done: job.Done[Result]) -> DeviceProfile:
    alone, shared = done.result.alone[label], done.result.together
    machine = {**shared.machine.facts(), "threads": job_.threads}
    timing = measure.Timing(shared.samples_ms, len(job_.latency_feeds[label]), job_.threads, work.warmup, machine)
    runtime = f"{alone.runtime} on {shared.machine.cpu_model} over ssh"
    found = together.Together(timing, {label: _energy(shared.energy[label])}, done.outputs)
    return together.device_profile(
        job_,
        label,
        found,
        Reading(alone.memory_mb, "MB", "measured", how=alone.how),
        runtime,
        placement=alone.placement,
        fallbacks=alone.fallbacks,
        facts={
            "runtime": alone.runtime,
            "operators": alone.operators,
            "python": shared.python,
            "sent_bytes": done.sent_bytes,
            "connections_lost": done.lost,
            **({"left_there": done.left_there} if done.left_there else {}),
        },
    )


def _energy(said: Spent | NotTaken) -> AnyReading:
    if isinstance(said, NotTaken):
        return Missing(said.missing)
    return Reading(said.mj, "mJ", "measured", n=said.n, how=said.how)
