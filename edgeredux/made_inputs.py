"""Inputs for a finished graph of which nobody gave any: shapes that it takes, found by trying, and hard values.

Dynamic axes are tried at 1, odd and all different, and 16; a decoder with a cache at past 0 and more, its mask as long
as past and tokens. Where a graph takes none of these (an image whose sides must be multiples of 32, a piece of sound
of some least length) a ladder of sizes follows. An integer that the graph compares with a constant, such as a sampling
rate, is fed as this constant and as another number, so that both ways are gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeredux import caching, graph_source, isolated
from edgeredux.errors import ArtifactError, one_line
from edgeredux.seams import Feed

if TYPE_CHECKING:
    import numpy as np

_SIZES: tuple[tuple[int, ...], ...] = ((1,), (2, 7, 5, 3), (16,))
_LADDER = (32, 64, 96, 128, 192, 224, 256, 288, 320, 384, 512, 576, 640, 1024, 4096, 16000)
_DECODER = ((1, 0, 1), (2, 5, 3), (1, 0, 16), (1, 9, 1))  # batch, past, tokens
_ENOUGH = 3  # of the ladder's shapes, for each way through the graph
_LOUD = 4.0


@dataclass(frozen=True)
class Graph:
    """What `graph_source.read_onnx` or `read_tflite` say of the inputs."""

    inputs: Mapping[str, tuple[str, list[Any]]]
    rows: Mapping[str, int]
    compared: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Rung:
    """A size of the ladder: `size` for the last axis, of images for the last two, `others` for all others."""

    size: int
    others: int


def make(source: Path, log: Path, fixed: Mapping[str, int]) -> tuple[list[Feed], list[Feed]]:
    """Seeded feeds that `source` can be executed on, at least one, and hard ones of the same shapes.

    Hard: zeros, and alternating values of magnitude 4 with a half of every mask switched off, as far as the graph
    answers them with numbers. `fixed`: sizes of dynamic axes by name that are given.
    Raises ArtifactError where the file cannot be read or takes no such input; its line asks for --data.
    """
    arguments = {"path": str(source), "fixed": dict(fixed)}
    feeds: tuple[list[Feed], list[Feed]]
    feeds = isolated.call("edgeredux.made_inputs:tried", arguments, log=log, what=source.name)
    return feeds


def tried(path: str, fixed: Mapping[str, int]) -> tuple[list[Feed], list[Feed]]:
    """The child's part of `make`."""
    read = graph_source.read_onnx if path.endswith(".onnx") else graph_source.read_tflite
    said = read(path)
    graph = Graph(said["inputs"], said["rows"], said.get("compared", {}))
    call = _caller(Path(path))
    found: list[Feed] = []
    problem = "no input was made"
    for values in _ways(graph):
        refused, climbed = False, 0
        for sizes in _shapes(graph, fixed):
            if isinstance(sizes, Rung) and (not refused or climbed == _ENOUGH):
                break  # the ladder is for graphs that refuse a small size
            feed = _feed(graph, sizes, fixed, values)
            try:
                call(feed)
            except ArtifactError as refusal:
                problem, refused = str(refusal), True
                continue
            found.append(feed)
            climbed += isinstance(sizes, Rung)
    if not found:
        raise ArtifactError(f"{problem}; these inputs were made up, give others by --data F.npz")
    return found, [hardened for feed in found for hardened in _hard(feed, graph) if _runs(call, hardened)]


def _caller(path: Path) -> Any:
    """A function that executes the file on a feed, or raises ArtifactError."""
    from edgeredux import execute

    if path.suffix == ".onnx":
        session = execute.onnx_session(path, 1)
        names = [item.name for item in session.get_outputs()]

        def call(feed: Feed) -> Feed:
            try:
                return dict(zip(names, session.run(names, feed), strict=True))
            except Exception as problem:  # ONNX Runtime raises a dozen classes of its own
                raise ArtifactError(one_line(f"{path.name}: cannot be executed: {problem}", 300)) from problem

        return call
    execute.run_tflite(str(path), [], 1)  # for the error of a file that cannot be loaded, whatever it is fed
    return lambda feed: execute.run_tflite(str(path), [feed], 1)[0]


def _runs(call: Any, feed: Feed) -> bool:
    """Whether the graph takes the feed and answers with numbers: 0 / 0 of an input of zeros shows nothing."""
    import numpy as np

    try:
        outputs = call(feed)
    except ArtifactError:
        return False
    return not any(value.dtype.kind == "f" and np.isnan(value).any() for value in outputs.values())


def _ways(graph: Graph) -> Iterator[dict[str, int]]:
    """Values of the integers that a graph compares with constants: each constant, and what is none of them."""
    yield {}
    for name, constants in graph.compared.items():
        for constant in constants:
            yield {name: constant}


def _shapes(graph: Graph, fixed: Mapping[str, int]) -> Iterator[tuple[int, ...] | Rung]:
    """Sizes in the order of their axes, a decoder's (batch, past, tokens), or a rung of the ladder."""
    if _is_decoder(graph):
        yield from _DECODER
        return
    if not _dynamic(graph, fixed):
        yield (1,)
        return
    yield from _SIZES
    for size in _LADDER:
        yield Rung(size, 1)
        yield Rung(size, 3)


def _dynamic(graph: Graph, fixed: Mapping[str, int]) -> bool:
    return any(_is_dynamic(size, fixed) for _, shape in graph.inputs.values() for size in shape)


def _is_dynamic(size: Any, fixed: Mapping[str, int]) -> bool:
    return not (isinstance(size, int) and size > 0) and str(size) not in fixed


def _is_decoder(graph: Graph) -> bool:
    return "input_ids" in graph.inputs and any(name.startswith("past_key_values.") for name in graph.inputs)


def _feed(graph: Graph, sizes: tuple[int, ...] | Rung, fixed: Mapping[str, int], values: Mapping[str, int]) -> Feed:
    import numpy as np

    axes: dict[str, int] = {}
    feed: Feed = {}
    for name, (kind, shape) in graph.inputs.items():
        made = []
        for index, size in enumerate(shape):
            if not _is_dynamic(size, fixed):
                made.append(int(fixed.get(str(size), size)))
            elif _is_decoder(graph) and isinstance(sizes, tuple):
                made.append(_decoder_size(name, index, sizes))
            else:
                axis = f"{name}.{index}" if size in ("?", 0, -1) else str(size)
                axes.setdefault(axis, _size(sizes, len(axes), index, len(shape)))
                made.append(axes[axis])
        feed[name] = graph_source.example(name, kind, made, dict(graph.rows))
        if name in values:
            feed[name] = np.full(made, values[name], feed[name].dtype)
    if _is_decoder(graph) and "position_ids" in feed and "attention_mask" in feed:
        tokens = feed["input_ids"].shape[1]
        feed["position_ids"] = caching.positions(feed["attention_mask"], tokens)
    return feed


def _size(sizes: tuple[int, ...] | Rung, number: int, index: int, rank: int) -> int:
    if isinstance(sizes, tuple):
        return sizes[number % len(sizes)]
    return sizes.size if index == rank - 1 or (rank >= 4 and index >= 2) else sizes.others


def _decoder_size(name: str, index: int, sizes: tuple[int, ...]) -> int:
    batch, past, tokens = sizes
    if index == 0:
        return batch
    if name.startswith("past_key_values."):
        return past
    return past + tokens if name == "attention_mask" else tokens


def _hard(feed: Feed, graph: Graph) -> Iterator[Feed]:
    """The same shapes with all zeros, and with loud alternating values and half of each mask off."""
    import numpy as np

    def loud(name: str, value: np.ndarray[Any, Any]) -> Any:
        sign = np.where(np.arange(value.size).reshape(value.shape) % 2, -1, 1)
        if value.dtype.kind == "f":
            return (sign * _LOUD).astype(value.dtype)
        if "mask" in name and value.ndim == 2:
            return np.where(np.arange(value.shape[1]) <= value.shape[1] // 2, value, 0).astype(value.dtype)
        if value.dtype.kind in "iu" and value.dtype.itemsize == 1:
            info = np.iinfo(value.dtype)
            return np.where(sign < 0, info.min, info.max).astype(value.dtype)
        if name in graph.rows:
            return np.where(sign < 0, 0, graph.rows[name] - 1).astype(value.dtype)
        return value

    def still(name: str, value: np.ndarray[Any, Any]) -> Any:
        return np.zeros_like(value) if value.dtype.kind == "f" or name in graph.rows else value

    yield {name: still(name, value) for name, value in feed.items()}
    yield {name: loud(name, value) for name, value in feed.items()}
