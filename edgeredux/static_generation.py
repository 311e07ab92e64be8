"""Token by token from a TFLite decoder of fixed shapes: signatures `prefill` and `decode`, the cache in and out.

The cache holds the last `length` tokens at its right end (edgeredux/export/static_decoder.py). A prompt goes in as many
at a time as prefill takes; the first time may be padded on the left.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeredux.caching import CacheLayer, static_shapes
from edgeredux.errors import ArtifactError, EnvironmentProblem, one_line

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_KEY = re.compile(r"kv_cache_k_(\d+)")


class TfliteDecoder:
    """An interpreter on the file; `feed` goes on where the last call ended."""

    cache_bytes = 4  # of one number of the cache

    def __init__(self, path: Path, threads: int) -> None:
        """Raises ArtifactError for a file that is no such decoder, EnvironmentProblem without LiteRT."""
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as problem:
            raise EnvironmentProblem("generate: LiteRT is not installed: pip install 'edgeredux[tflite]'") from problem
        try:
            with _silent():
                self._interpreter = Interpreter(model_path=str(path), num_threads=threads)
                self._interpreter.allocate_tensors()
                signatures = self._interpreter.get_signature_list()
                if not {"prefill", "decode"} <= set(signatures):
                    raise ArtifactError(f"{path.name}: no decoder: it has no signatures prefill and decode")
                self._runners = {key: self._interpreter.get_signature_runner(key) for key in ("prefill", "decode")}
                self.cache, self.length = _cache(
                    {name: item["shape"] for name, item in self._runners["decode"].get_input_details().items()},
                    path.name,
                )
        except (ValueError, RuntimeError) as problem:
            raise ArtifactError(one_line(f"{path.name}: LiteRT cannot load it: {problem}", 300)) from problem
        self._at_a_time = {
            key: runner.get_input_details()["tokens"]["shape"][1] for key, runner in self._runners.items()
        }
        self.reset()

    def reset(self) -> None:
        """Forget every token seen."""
        import numpy as np

        self.seen = 0
        shapes = static_shapes(self.cache, self.length)
        self._past: dict[str, Array] = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}

    def feed(self, tokens: Sequence[int]) -> Array:
        """The next token's logits [vocabulary], float32, after these tokens. Raises ArtifactError beyond `length`."""
        if self.seen + len(tokens) > self.length:
            raise ArtifactError(f"generate: the file keeps {self.length} tokens, and no more are seen")
        key = "decode" if len(tokens) == 1 else "prefill"
        size = self._at_a_time[key]
        # Padding stands left of all that was seen: there is none but before the first token.
        first = len(tokens) % size or size
        if self.seen and first != size:
            return self._one_by_one(tokens)
        logits = self._call(key, tokens[:first])
        for place in range(first, len(tokens), size):
            logits = self._call(key, tokens[place : place + size])
        return logits

    def _one_by_one(self, tokens: Sequence[int]) -> Array:
        *before, last = tokens
        for token in before:
            self._call("decode", [token])
        return self._call("decode", [last])

    def _call(self, key: str, tokens: Sequence[int]) -> Array:
        import numpy as np

        size = self._at_a_time[key]
        self.seen += len(tokens)
        mask = np.zeros((1, self.length + size), np.int32)
        mask[0, self.length + size - self.seen :] = 1
        given = {
            "tokens": np.array([[0] * (size - len(tokens)) + list(tokens)], np.int32),
            "input_pos": np.maximum(np.arange(self.seen - size, self.seen), 0)[None].astype(np.int32),
            "mask": mask,
        }
        wanted = self._runners[key].get_input_details()
        try:
            out = self._runners[key](**{name: value for name, value in given.items() if name in wanted}, **self._past)
        except (ValueError, RuntimeError) as problem:
            raise ArtifactError(one_line(f"generate: LiteRT cannot run the model: {problem}", 300)) from problem
        self._past = {name: out[name] for name in self._past}
        logits: Array = out["logits"][0].astype(np.float32)
        return logits


@contextmanager
def _silent() -> Iterator[None]:
    """LiteRT says on stderr, past Python, that it made a delegate; a user's error line stands alone there."""
    sys.stderr.flush()
    before = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(nowhere)
        os.close(before)


def _cache(shapes: Mapping[str, Any], where: str) -> tuple[tuple[CacheLayer, ...], int]:
    """The layers of the cache and how many tokens it keeps."""
    count = sum(1 for name in shapes if _KEY.fullmatch(name))
    names = [f"kv_cache_{kind}_{index}" for index in range(count) for kind in "kv"]
    lengths = {int(shapes[name][2]) for name in names if name in shapes and len(shapes[name]) == 4}
    if not count or not {"tokens", *names} <= set(shapes) or len(lengths) != 1:
        raise ArtifactError(
            f"{where}: no decoder: tokens and kv_cache_k_N, kv_cache_v_N [1, heads, tokens, size] go in"
        )
    pairs = zip(*(iter(shapes[name] for name in names),) * 2, strict=True)
    return tuple(CacheLayer(int(key[1]), int(key[3]), int(value[3])) for key, value in pairs), lengths.pop()
