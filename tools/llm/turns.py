"""Decoders timed in turns within one process: python -m llm.turns THREADS ROUNDS LABEL=FILE ..."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from edgeredux.caching import of_onnx
from edgeredux.generation import Decoder
from edgeredux.runners.decoding_speed import weight_bytes

SHORT, LONG, TOKENS = 32, 256, 32  # prompt before decoding, prompt of the prefill reading, tokens decoded


def session(path: Path, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads of one session that spin after its run would take the cores from the next one's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def fixed_heads(path: Path, size: int) -> Path:
    """The builder's file with the head size in its inputs' shapes, where it has a name; the weights stay beside it."""
    out = path.with_name("fixed.onnx")
    model = onnx.load(str(path), load_external_data=False)
    for value in [*model.graph.input, *model.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "kv_cache_dim":
                dim.dim_value = size
    onnx.save(model, str(out))
    return out


def measure(paths: dict[str, Path], threads: int, rounds: int) -> dict[str, Any]:
    """By label, milliseconds of each round: `prefill` of LONG tokens, `decode` of one token after SHORT others.

    At one thread on the processor time of the thread that runs, at more on the wall clock.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter
    decoders = {label: Decoder(path, lambda path=path: session(path, threads)) for label, path in paths.items()}
    found: dict[str, Any] = {label: {"prefill": [], "decode": []} for label in paths}
    for number in range(rounds + 1):
        for label, decoder in decoders.items():
            decoder.reset()
            started = clock()
            decoder.feed([token % 1000 for token in range(LONG)])
            prefill = clock() - started
            decoder.reset()
            decoder.feed(list(range(SHORT)))
            started = clock()
            for token in range(TOKENS):
                decoder.feed([token])
            decode = (clock() - started) / TOKENS
            if number:  # the first round allocates
                found[label]["prefill"].append(1000 * prefill)
                found[label]["decode"].append(1000 * decode)
    for label, path in paths.items():
        found[label]["weight_bytes_per_token"] = weight_bytes(path)
        found[label]["cache_bytes_per_token"] = sum(layer.numbers_per_token for layer in of_onnx(path)) * 4
    return found


if __name__ == "__main__":
    given = dict(text.split("=", 1) for text in sys.argv[3:])
    said = measure({label: Path(path) for label, path in given.items()}, int(sys.argv[1]), int(sys.argv[2]))
    print("READINGS " + json.dumps(said))
