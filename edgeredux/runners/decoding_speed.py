"""How fast decoders generate: the prompt and then token by token, all files of a job in turns, and what bounds it."""

from __future__ import annotations

import time

from edgeredux import measure as measuring
from edgeredux.caching import of_onnx
from edgeredux.errors import ArtifactError
from edgeredux.generation import Decoder
from edgeredux.readings import AnyReading, Missing, Reading, summarise
from edgeredux.roofline import weight_bytes
from edgeredux.seams import ProfileJob

PROMPT, TOKENS, ROUNDS = 64, 32, 7  # tokens of the prompt, tokens decoded after it, rounds
SPEEDS = ("time_to_first_token_ms", "prefill_tokens_per_s", "decode_tokens_per_s")


def is_decoder(job: ProfileJob) -> bool:
    """Whether every file of the job takes its past as inputs."""
    return all(path.suffix == ".onnx" and of_onnx(path) for path in job.artifacts.values())


def measure(job: ProfileJob, level: str) -> dict[str, dict[str, AnyReading]]:
    """In a child: the readings by label.

    time_to_first_token_ms and prefill_tokens_per_s at a prompt of 64 tokens, decode_tokens_per_s over the 32 that
    follow (median of rounds, files in turns), energy_mj_per_token of such a generation, cache_bytes_per_token and
    weight_mb_per_token: what each token must read (roofline.py). `level`: ONNX Runtime's optimisations.
    """
    # Sessions whose threads do not spin after a run: they would take the cores from the one whose turn is next.
    decoders = {label: _decoder(job, label, level) for label in job.artifacts}
    first: dict[str, list[float]] = {label: [] for label in decoders}
    later: dict[str, list[float]] = {label: [] for label in decoders}
    try:
        for number in range(ROUNDS + 1):
            for label, decoder in decoders.items():
                started, between, ended = _once(decoder)
                if number:  # the first round allocates
                    first[label].append(between - started)
                    later[label].append(ended - between)
    except ArtifactError as problem:  # a context of fewer positions, or too few tokens
        reason: AnyReading = Missing(f"{PROMPT} tokens and {TOKENS} more could not be generated: {problem}")
        unknown = dict.fromkeys(SPEEDS, reason)
        return {label: {**unknown, **_sizes(job, label, decoder)} for label, decoder in decoders.items()}
    how = f"{job.threads} threads, prompt of {PROMPT} tokens, then {TOKENS}, {ROUNDS} rounds, files in turns"
    found: dict[str, dict[str, AnyReading]] = {}
    for label, decoder in decoders.items():
        found[label] = {
            "time_to_first_token_ms": summarise([1000 * s for s in first[label]], "ms", "measured", how),
            "prefill_tokens_per_s": summarise([PROMPT / s for s in first[label]], "tokens/s", "measured", how),
            "decode_tokens_per_s": summarise([TOKENS / s for s in later[label]], "tokens/s", "measured", how),
            "energy_mj_per_token": _energy(job, decoder),
            **_sizes(job, label, decoder),
        }
    return found


def _decoder(job: ProfileJob, label: str, level: str) -> Decoder:
    from edgeredux.runners import ort_session

    path = job.artifacts[label]
    return Decoder(path, lambda: ort_session.cpu_session(path, job.threads, level))


def _once(decoder: Decoder) -> tuple[float, float, float]:
    decoder.reset()
    started = time.perf_counter()
    decoder.feed([1] * PROMPT)
    between = time.perf_counter()
    for _ in range(TOKENS):
        decoder.feed([1])
    return started, between, time.perf_counter()


def _energy(job: ProfileJob, decoder: Decoder) -> AnyReading:
    def work() -> None:
        _once(decoder)

    uncounted = Missing("multiply-accumulates are not counted on this runtime")
    found = measuring.energy(job.energy, work, job.repeats, uncounted)
    if isinstance(found, Missing):
        return found
    how = f"{found.how}; a prompt of {PROMPT} tokens and {TOKENS} more, over those {TOKENS}"
    return Reading(found.value / TOKENS, "mJ/token", found.source, n=found.n, how=how, noisy=found.noisy)


def _sizes(job: ProfileJob, label: str, decoder: Decoder) -> dict[str, AnyReading]:
    return {
        "cache_bytes_per_token": Reading(
            float(sum(layer.numbers_per_token for layer in decoder.cache) * decoder.cache_bytes),
            "bytes",
            "measured",
            how="heads x sizes of all layers in the file, times the bytes of a number",
        ),
        "weight_mb_per_token": Reading(
            weight_bytes(job.artifacts[label]) / 1e6,
            "MB",
            "measured",
            how="weights in the file that every token reads: all but tables of which it reads a row",
        ),
    }
