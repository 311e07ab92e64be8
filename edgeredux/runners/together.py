"""What every runner that executes in this process does alike: time all files interleaved, meter them, keep outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgeredux import measure
from edgeredux.caching import is_present
from edgeredux.machine import PeakMemory
from edgeredux.quality import without_logits
from edgeredux.readings import AnyReading, Missing, Reading
from edgeredux.runners import inputs
from edgeredux.seams import DeviceProfile, Feed, ProfileJob

MEMORY_RUNS = 3  # runs under the memory gauge: the first allocates, the others would show growth


@dataclass(frozen=True)
class Loaded:
    """A model file ready to run: `fit` makes a feed fit its inputs, `run` computes outputs by name from that."""

    fit: Callable[[Feed], Feed]
    run: Callable[[Feed], Feed]


@dataclass(frozen=True)
class Together:
    """What one process found of all files: it crosses back from the child."""

    timing: measure.Timing
    energy: Mapping[str, AnyReading]
    outputs: Mapping[str, list[Feed]]


def measure_all(job: ProfileJob, load: Callable[[str], Loaded]) -> Together:
    """Interleaved timing of all labels, energy by label, then the outputs of the quality feeds."""
    loaded = {label: load(label) for label in job.artifacts}
    counts = {len(job.latency_feeds[label]) for label in loaded}
    (count,) = counts  # alike for all, so that round n is the same sample in every artifact

    def call(label: str, model: Loaded) -> Callable[[int], object]:
        feeds = [model.fit(feed) for feed in job.latency_feeds[label]]
        return lambda number: model.run(feeds[number % count])

    calls = {label: call(label, model) for label, model in loaded.items()}
    timing = measure.interleave(
        calls,
        rounds=job.repeats,
        warmup=max(job.warmup, max(inputs.distinct_shapes(job.latency_feeds[label]) for label in loaded)),
        threads=job.threads,
        inputs=count,
    )
    uncounted = Missing("multiply-accumulates are not counted on this runtime")

    def work(label: str) -> Callable[[], None]:
        def once() -> None:
            calls[label](0)

        return once

    energy = {label: measure.energy(job.energy, work(label), job.repeats, uncounted) for label in calls}
    outputs = {
        label: [_wanted(job, model.run(model.fit(feed)), feed) for feed in job.quality_feeds[label]]
        for label, model in loaded.items()
    }
    return Together(timing, energy, outputs)


def _wanted(job: ProfileJob, outputs: Feed, feed: Feed) -> Feed:
    """What quality is judged by: no cache, and of logits no more than is read off them."""
    kept = {name: value for name, value in outputs.items() if not is_present(name)}
    return without_logits(kept, feed) if job.next_tokens else kept


def peak_memory(job: ProfileJob, label: str, load: Callable[[], Loaded], runtime: str) -> Reading:
    """Peak memory of loading and running one file. Call it in a process that has imported the runtime and no more."""
    feed = job.first_feed(label)
    memory = PeakMemory().start()
    model = load()
    fitted = model.fit(feed)
    for _ in range(MEMORY_RUNS):
        model.run(fitted)
    how = (
        f"peak resident memory of a process of its own while it loads the file and runs it {MEMORY_RUNS} times, above "
        f"that with {runtime} imported ({memory.how}), inputs {inputs.shapes([feed])}"
    )
    return Reading(memory.mb(), "MB", "measured", how=how)


def device_profile(
    job: ProfileJob,
    label: str,
    together: Together,
    memory: AnyReading,
    runtime: str,
    *,
    placement: Mapping[str, int],
    fallbacks: tuple[str, ...] = (),
    facts: Mapping[str, Any],
) -> DeviceProfile:
    """The profile of one file. `runtime` says what executed, e.g. "ONNX Runtime 1.32.0 CPUExecutionProvider"."""
    latency = together.timing.latency(label, f"{runtime}, inputs {inputs.shapes(job.latency_feeds[label])}")
    wanted = bool(job.quality_feeds[label])
    return DeviceProfile(
        readings={
            "latency_ms": latency,
            "throughput_per_s": measure.throughput(latency, job.samples_per_run),
            "energy_mj": together.energy[label],
            "memory_mb": memory,
        },
        latency_samples=together.timing.samples_ms[label],
        outputs=together.outputs[label] if wanted else None,
        outputs_source="measured" if wanted else None,
        outputs_how=runtime if wanted else "",
        placement=placement,
        fallbacks=fallbacks,
        facts=facts,
        machine=together.timing.machine,
    )
