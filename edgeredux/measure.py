"""Latency of several things measured together, and energy by the best meter there is.

Interleaved: each round runs every label once, and the order turns by one place and changes direction from round to
round, so that drift (heat, clocks, other people's load) falls on all alike and samples of one round can be paired.

A run is called noisy when one of these holds, and the reason is recorded:
- the samples spread: p90/p10 above `SPREAD_LIMIT`, each sample taken relative to the median of its own input;
- other processes kept more cores busy than were free: others > `OTHERS_LIMIT` + cores - threads;
- the hypervisor took more than `STEAL_LIMIT` of the time, or the processor throttled for heat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeredux import rounds as rounds_of
from edgeredux.readings import AnyReading, Missing, Reading

SPREAD_LIMIT = 1.3
OTHERS_LIMIT = 0.25
STEAL_LIMIT = 0.02


@dataclass(frozen=True)
class Timing:
    """Milliseconds by label, one per round, the same rounds for every label."""

    samples_ms: Mapping[str, tuple[float, ...]]
    inputs: int  # round r ran input r % inputs
    threads: int
    warmup: int
    machine: Mapping[str, Any] = field(default_factory=dict)

    def spread(self, label: str) -> float:
        """p90/p10 of the samples, each relative to the median of those of the same input."""
        import numpy as np

        samples = np.asarray(self.samples_ms[label])
        if len(samples) >= 3 * self.inputs:
            centre = np.array([np.median(samples[i :: self.inputs]) for i in range(self.inputs)])
            samples = samples / centre[np.arange(len(samples)) % self.inputs]
        low, high = np.percentile(samples, [10, 90])
        return float(high / low) if low > 0 else float("inf")

    def noise(self, label: str) -> tuple[str, ...]:
        """Why this label's samples are not to be trusted to a few per cent; empty when nothing was seen."""
        found = list(machine_noise(self.machine, self.threads))
        spread = self.spread(label)
        if spread > SPREAD_LIMIT:
            found.append(f"p90/p10 is {spread:.2f} (limit {SPREAD_LIMIT})")
        return tuple(found)

    def latency(self, label: str, how: str) -> Reading:
        """Median latency in ms with p10 and p90; `how` is completed with the procedure and the noise verdict."""
        import numpy as np

        samples = self.samples_ms[label]
        p10, median, p90 = (float(x) for x in np.percentile(samples, [10, 50, 90]))
        noise = self.noise(label)
        others = [name for name in self.samples_ms if name != label]
        text = f"{how}; median of {len(samples)} runs after {self.warmup} to warm up, "
        text += f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        if others:
            text += f", interleaved with {', '.join(others)}"
        if noise:
            text += f"; noisy: {'; '.join(noise)}"
        return Reading(median, "ms", "measured", len(samples), p10, p90, how=text, noisy=bool(noise))


def machine_noise(facts: Mapping[str, Any], threads: int) -> tuple[str, ...]:
    """What the machine's state says against a measurement with this many threads."""
    found = []
    free = max(0, int(facts.get("cores", threads)) - threads)
    others = facts.get("others_cores")
    if others is not None and others > OTHERS_LIMIT + free:
        found.append(f"other processes kept {others:.1f} cores busy with {free} free")
    steal = facts.get("steal_share")
    if steal is not None and steal > STEAL_LIMIT:
        found.append(f"the hypervisor took {steal:.0%} of the time")
    if facts.get("throttle_events"):
        found.append(f"the processor throttled {facts['throttle_events']} times")
    said = [*facts.get("firmware_throttling_before", ()), *facts.get("firmware_throttling_after", ())]
    if said:
        found.append(f"the firmware says: {', '.join(dict.fromkeys(said))}")
    return tuple(found)


def interleave(
    calls: Mapping[str, Callable[[int], object]], *, rounds: int, warmup: int, threads: int, inputs: int = 1
) -> Timing:
    """Time every call once a round; a call gets the round's number and takes input `number % inputs` itself.

    `warmup` unmeasured rounds come first. Garbage collection is off while the clock runs. Raises ValueError on no
    calls or no rounds.
    """
    if not calls or rounds < 1 or warmup < 0 or inputs < 1:
        raise ValueError(f"{len(calls)} calls, {rounds} rounds, {warmup} warm-up rounds, {inputs} inputs")
    samples, found = rounds_of.timed(calls, rounds, warmup)
    facts = {**found, "threads": threads}
    return Timing({label: tuple(values) for label, values in samples.items()}, inputs, threads, warmup, facts)


def throughput(latency: AnyReading, samples_per_run: int) -> AnyReading:
    """Model inputs a second when runs follow each other: samples per run over latency."""
    if isinstance(latency, Missing):
        return latency

    def rate(milliseconds: float | None) -> float | None:
        return None if not milliseconds else 1000.0 * samples_per_run / milliseconds

    value = rate(latency.value)
    if value is None:
        return Missing(f"latency is {latency.value} ms")
    return Reading(
        value,
        "1/s",
        latency.source,
        latency.n,
        rate(latency.p90),
        rate(latency.p10),
        how=f"{samples_per_run} per run / latency ({latency.how})",
        noisy=latency.noisy,
    )


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float], *, seed: int = 0) -> Reading:
    """Median of the per-round ratios of two interleaved runs, with a 95 % percentile-bootstrap interval.

    Source: Efron & Tibshirani 1993, ch. 13; 1000 resamples of rounds. Raises ValueError on unequal lengths.
    """
    import numpy as np

    if len(numerator) != len(denominator) or not numerator:
        raise ValueError(f"{len(numerator)} and {len(denominator)} samples cannot be paired")
    ratios = np.asarray(numerator) / np.asarray(denominator)
    picks = np.random.default_rng(seed).integers(0, len(ratios), (1000, len(ratios)))
    low, high = np.percentile(np.median(ratios[picks], axis=1), [2.5, 97.5])
    p10, median, p90 = np.percentile(ratios, [10, 50, 90])
    return Reading(
        float(median),
        "ratio",
        "measured",
        len(ratios),
        float(p10),
        float(p90),
        float(low),
        float(high),
        how="median of paired ratios, interval by bootstrap over rounds",
    )


@dataclass(frozen=True)
class Activity:
    """What one run does, for an energy model: multiply-accumulates by dtype, bytes by memory, and how long it takes."""

    macs: Mapping[str, float]
    bytes_moved: Mapping[str, float]
    latency_ms: float


def energy(
    section: Mapping[str, Any], work: Callable[[], None] | None, repeats: int, activity: Activity | Missing
) -> AnyReading:
    """Millijoules per run by the target's energy section: the first meter that can read, else its energy model.

    `work` is one run, or None where nothing executes here. Without a reading the answer is Missing with every reason.
    """
    from edgeredux import registry
    from edgeredux.errors import TargetError

    reasons: list[str] = []
    for name in section.get("meter") or ():
        meter = registry.create("meter", name, {}, "energy.meter", TargetError)
        why_not = meter.available() if work is not None else "nothing runs on this machine that a meter could read"
        if why_not is None:
            assert work is not None
            reading: AnyReading = meter.energy_mj(work, repeats)
            if isinstance(reading, Reading):
                return reading
            why_not = reading.reason
        reasons.append(f"{name}: {why_not}")
    coefficients = section.get("model")
    if coefficients and isinstance(activity, Activity):
        model = registry.create("meter", "model", {**coefficients, "activity": activity}, "energy.model", TargetError)
        estimate: AnyReading = model.energy_mj(work, 1)
        return estimate
    if coefficients:
        assert isinstance(activity, Missing)
        reasons.append(f"energy model: {activity.reason}")
    why = section.get("unknown") or "the target has neither a meter nor an energy model"
    return Missing("; ".join(reasons) or str(why))
