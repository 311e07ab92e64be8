"""How many tokens a second a target's memory allows a decoder: each token reads every weight and its whole past.

limit = bandwidth / (bytes of weights + bytes of the cache at CONTEXT tokens): the memory line of the roofline model
(Williams, Waterman and Patterson 2009). Decoding one text does two operations a weight, so this line is the one it
meets. Caches that hold the whole model are faster than it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgeredux.caching import of_onnx
from edgeredux.readings import AnyReading, Missing, Reading

if TYPE_CHECKING:
    from edgeredux.target import Target

CONTEXT = 80  # tokens seen, the mean of what decode_tokens_per_s is read at: a prompt of 64 and 32 after it
LIMIT, SHARE = "decode_limit_tokens_per_s", "decode_share_of_limit"
_MAIN = ("dram", "hbm")  # memories that a model lies in
_TABLES = ("Gather", "GatherBlockQuantized")
_BYTES = {"GB/s": 1e9}


def readings(path: Path, target: Target, taken: Mapping[str, AnyReading]) -> dict[str, AnyReading]:
    """The limit of a decoder's file on the target, estimated, and which share of it was reached; else {}.

    `taken`: the file's readings there. Missing where the target does not say its bandwidth.
    """
    cache = of_onnx(path) if path.suffix == ".onnx" else ()
    if not cache:
        return {}
    memory = next((name for name in _MAIN if name in target.hardware.bandwidth), None)
    if memory is None:
        why = target.hardware.unknown.get("bandwidth", "the target file names none")
        return dict.fromkeys((LIMIT, SHARE), Missing(f"the bandwidth of its main memory is not known: {why}"))
    figure = target.hardware.bandwidth[memory]
    weights = weight_bytes(path)
    number = taken.get("cache_bytes_per_token")
    per_token = number.value if isinstance(number, Reading) else 4.0 * sum(layer.numbers_per_token for layer in cache)
    limit = figure.value * _BYTES[figure.unit] / (weights + CONTEXT * per_token)
    how = (
        f"{figure.value:g} {figure.unit} of {memory} ({figure.source}) over {weights / 1e6:.3g} MB of weights and "
        f"{CONTEXT * per_token / 1e6:.3g} MB of cache at {CONTEXT} tokens"
    )
    found: dict[str, AnyReading] = {LIMIT: Reading(limit, "tokens/s", "estimated", how=how)}
    speed = taken.get("decode_tokens_per_s", Missing("decoding was not timed here"))
    if isinstance(speed, Missing):
        return {**found, SHARE: Missing(f"the speed is not known: {speed.reason}")}
    share = speed.value / limit
    return {**found, SHARE: Reading(share, "x", "estimated", noisy=speed.noisy, how="measured speed / limit")}


def weight_bytes(path: Path) -> int:
    """Bytes of the initializers that some operator other than a table's look-up reads."""
    import onnx_ir as ir

    model = ir.load(path)
    total = 0
    for value in model.graph.initializers.values():
        readers = {(node.op_type, index) for node, index in value.uses()}
        if value.const_value is not None and not all(kind in _TABLES and index != 1 for kind, index in readers):
            total += value.const_value.nbytes
    return total
