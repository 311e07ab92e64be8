"""Token by token from an exported decoder: the prompt once, then each new token with the cache of the call before."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgeredux import caching
from edgeredux.errors import ArtifactError, DataError, one_line

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sampling:
    """Greedy at temperature 0 (ties by lower token number), else drawn from the `top_k` likeliest by a seeded draw."""

    temperature: float = 0.0
    top_k: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100 or self.top_k < 1:
            raise DataError("generate: temperature is 0 (greedy) to 100, top-k at least 1")

    def chooser(self) -> Chooser:
        """A fresh one: the same seed draws the same tokens."""
        return Chooser(self)


class Chooser:
    """Picks tokens from logits [vocabulary]."""

    def __init__(self, said: Sampling) -> None:
        import numpy as np

        self._said = said
        self._random = np.random.default_rng(said.seed)

    def __call__(self, logits: Array) -> int:
        """The next token. Raises ArtifactError for logits that are not finite."""
        import numpy as np

        if not np.isfinite(logits).all():
            raise ArtifactError("generate: the model's logits hold NaN or infinite values")
        if self._said.temperature == 0:
            return int(logits.argmax())
        best = np.argsort(-logits, kind="stable")[: self._said.top_k]
        scaled = (logits[best] - logits[best[0]]).astype(np.float64) / self._said.temperature
        weights = np.exp(scaled)
        return int(self._random.choice(best, p=weights / weights.sum()))


class Decoder:
    """A session on an ONNX decoder with a cache; `feed` goes on where the last call ended."""

    def __init__(self, path: Path, make_session: Callable[[], Any]) -> None:
        """`make_session` loads the file into ONNX Runtime. Raises ArtifactError when it has no cache."""
        self.cache = caching.of_onnx(path)
        if not self.cache:
            raise ArtifactError(
                f"{path.name}: it has no key-value cache; export it with cache: true under its artifact in the recipe"
            )
        self._session = make_session()
        self._wanted = [item.name for item in self._session.get_inputs()]
        names = [item.name for item in self._session.get_outputs()]
        self._present = [name for name in names if caching.is_present(name)]
        dtypes = {"tensor(float)": "float32", "tensor(float16)": "float16"}
        kinds = {item.name: dtypes.get(item.type) for item in self._session.get_inputs()}
        self._kinds = {name: kind for name, kind in kinds.items() if name.startswith("past_key_values.")}
        missing = {"logits", *caching.present_names(self.cache)} - set(names)
        if missing or None in self._kinds.values():
            raise ArtifactError(f"{path.name}: no decoder as Optimum names it: {', '.join(sorted(missing)) or 'cache'}")
        self.reset()

    @property
    def cache_bytes(self) -> int:
        """Bytes of one number of the cache."""
        return 2 if "float16" in self._kinds.values() else 4

    def reset(self) -> None:
        """Forget every token seen."""
        import onnxruntime as ort

        self.seen = 0
        empty = caching.empty(self.cache, 1)
        self._past = {
            name: ort.OrtValue.ortvalue_from_numpy(value.astype(self._kinds[name])) for name, value in empty.items()
        }

    def feed(self, tokens: Sequence[int]) -> Array:
        """The next token's logits [vocabulary], float32, after these tokens."""
        import numpy as np
        import onnxruntime as ort

        mask = np.ones((1, self.seen + len(tokens)), np.int64)
        given = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": mask,
            "position_ids": caching.positions(mask, len(tokens)),
        }
        values = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in given.items()}
        feeds = {name: (values | self._past)[name] for name in self._wanted}
        try:
            # OrtValues: the cache stays with the runtime instead of being copied out and in for each token.
            logits, *present = self._session.run_with_ort_values(["logits", *self._present], feeds)
        except Exception as problem:
            raise ArtifactError(one_line(f"generate: ONNX Runtime cannot run the model: {problem}", 300)) from problem
        self._past = {
            name.replace("present.", "past_key_values."): value
            for name, value in zip(self._present, present, strict=True)
        }
        self.seen += len(tokens)
        last: Array = logits.numpy()[0, -1].astype(np.float32)
        return last


class Feeds(Protocol):
    """What generation needs of a decoder, whatever runs it."""

    cache: caching.Cache
    seen: int

    def reset(self) -> None: ...

    def feed(self, tokens: Sequence[int]) -> Array: ...


@dataclass
class Timing:
    """Wall-clock seconds of the prompt and of every token after the first."""

    prompt_tokens: int = 0
    prefill_s: float = 0.0
    token_s: list[float] = field(default_factory=list)

    @property
    def decode_tokens_per_s(self) -> float | None:
        """None before a second token."""
        return len(self.token_s) / sum(self.token_s) if self.token_s else None


def generate(
    decoder: Feeds, prompt: Sequence[int], limit: int, stops: frozenset[int], sampling: Sampling, timing: Timing
) -> Iterator[int]:
    """Up to `limit` new tokens after `prompt`, ended by one of `stops` (which is not given out). Fills `timing`."""
    choose = sampling.chooser()
    decoder.reset()
    timing.prompt_tokens = len(prompt)
    started = time.perf_counter()
    token = choose(decoder.feed(prompt))
    timing.prefill_s = time.perf_counter() - started
    for count in range(limit):
        if token in stops:
            return
        yield token
        if count + 1 < limit:
            started = time.perf_counter()
            token = choose(decoder.feed([token]))
            timing.token_s.append(time.perf_counter() - started)
