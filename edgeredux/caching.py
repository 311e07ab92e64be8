"""The key-value cache of a decoder as plain inputs and outputs of a graph, by Optimum's names.

`past_key_values.N.key` and `.value` [batch, key-value heads, past_sequence_length, size] come in, `present.N.key` and
`.value` [..., total_sequence_length, size] go out; `attention_mask` covers past and new tokens. Heads and sizes may
differ from layer to layer, as they do in a pruned model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeredux.errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

PAST, TOTAL = "past_sequence_length", "total_sequence_length"
_NAME = re.compile(r"past_key_values\.(\d+)\.(key|value)")


@dataclass(frozen=True)
class CacheLayer:
    """What one layer keeps of a token: `heads` keys of `key_size` numbers and as many values of `value_size`."""

    heads: int
    key_size: int
    value_size: int

    @property
    def numbers_per_token(self) -> int:
        """How many numbers the cache grows by with each token."""
        return self.heads * (self.key_size + self.value_size)


Cache = tuple[CacheLayer, ...]


def past_shapes(cache: Cache) -> dict[str, tuple[int, int]]:
    """Name of each past input -> (heads, size), in the order of the graph's inputs."""
    return {
        f"past_key_values.{index}.{kind}": (layer.heads, size)
        for index, layer in enumerate(cache)
        for kind, size in (("key", layer.key_size), ("value", layer.value_size))
    }


def static_shapes(cache: Cache, length: int) -> dict[str, tuple[int, int, int, int]]:
    """Name of each tensor of a past of `length` tokens -> its shape, by the names of LiteRT's own language models."""
    return {
        f"kv_cache_{kind}_{index}": (1, layer.heads, length, size)
        for index, layer in enumerate(cache)
        for kind, size in (("k", layer.key_size), ("v", layer.value_size))
    }


def present_names(cache: Cache) -> tuple[str, ...]:
    """The outputs that are the next call's past, in the order of `past_shapes`."""
    return tuple(name.replace("past_key_values.", "present.") for name in past_shapes(cache))


def is_present(name: str) -> bool:
    """Whether this output is a decoder's cache: larger than all else, and no measure of quality."""
    return name.startswith("present.")


def axes(cache: Cache) -> dict[str, tuple[str | None, ...]]:
    """The dynamic axes of cache inputs and outputs, and of the attention mask that covers them."""
    found: dict[str, tuple[str | None, ...]] = {"attention_mask": ("batch", TOTAL)}
    found |= dict.fromkeys(past_shapes(cache), ("batch", None, PAST, None))
    return found | dict.fromkeys(present_names(cache), ("batch", None, TOTAL, None))


def empty(cache: Cache, batch: int) -> dict[str, Array]:
    """A past of no tokens, float32."""
    import numpy as np

    return {name: np.zeros((batch, heads, 0, size), np.float32) for name, (heads, size) in past_shapes(cache).items()}


def made_up(cache: Cache, batch: int, past: int, seed: int = 0) -> dict[str, Array]:
    """A past of `past` tokens, seeded normal numbers: any numbers are a valid past."""
    import numpy as np

    random = np.random.default_rng(seed)
    return {
        name: random.standard_normal((batch, heads, past, size)).astype(np.float32)
        for name, (heads, size) in past_shapes(cache).items()
    }


def positions(mask: Array, count: int) -> Array:
    """Position numbers of the last `count` tokens, int64: padding on the left is 0, on the right the last one again."""
    import numpy as np

    found: Array = np.maximum(mask.cumsum(1) - 1, 0)[:, mask.shape[1] - count :].astype(np.int64)
    return found


def of_inputs(inputs: Iterator[tuple[str, Sequence[Any]]], where: str) -> Cache:
    """The cache that a graph's inputs (name, shape) describe, () for a graph without one.

    Raises ArtifactError where a layer is not whole or its heads and sizes are not fixed numbers.
    """
    found: dict[int, dict[str, Sequence[Any]]] = {}
    for name, shape in inputs:
        if match := _NAME.fullmatch(name):
            found.setdefault(int(match[1]), {})[match[2]] = shape
    layers = []
    for index in range(len(found)):
        layer = found.get(index, {})
        for kind in ("key", "value"):
            shape = layer.get(kind, ())
            if len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int):
                raise ArtifactError(
                    f"{where}: past_key_values.{index}.{kind} must be there as [batch, heads, past, size] with fixed "
                    f"heads and size; it is {list(shape) or 'absent'}"
                )
        layers.append(CacheLayer(layer["key"][1], layer["key"][3], layer["value"][3]))
    return tuple(layers)


def of_onnx(path: Path) -> Cache:
    """The cache of an ONNX file, () when it has none."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    shapes = (
        (value.name, [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim])
        for value in graph.input
    )
    return of_inputs(shapes, path.name)
