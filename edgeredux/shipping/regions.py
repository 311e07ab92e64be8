"""Where the weights lie in a model file, and how wide their numbers are: what the codes need to know of a format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from edgeredux.errors import ArtifactError, one_line

_LEAST = 512  # bytes of a weight that are worth a code of their own
PIECE = 1 << 24  # bytes coded, and expanded, at one time

Region = tuple[int, int, int]  # offset, bytes, bytes a number


def regions(path: Path, data: Any) -> list[Region]:
    """The file in order, as regions that overlap nowhere and leave nothing out; what is no weight has items of 1.

    `data`: its bytes, or a read-only mmap of them. An ONNX file's external weights (its name and ".data") are read by
    the names that it gives them. Raises ArtifactError when a .onnx or .tflite file is none.
    """
    weights: Iterable[Region] = ()
    if path.suffix == ".onnx":
        weights = _onnx(path, data)
    elif path.suffix == ".tflite":
        weights = _tflite(path, data)
    elif path.suffixes[-2:] == [".onnx", ".data"] and path.with_suffix("").is_file():
        weights = _external(path.with_suffix(""))
    found: list[Region] = []
    place = 0
    for start, length, item in sorted(set(weights)):
        if start >= place and start + length <= len(data) and length >= _LEAST:  # equal weights are found at one place
            found += _pieces(place, start - place, 1) + _pieces(start, length, item)
            place = start + length
    return found + _pieces(place, len(data) - place, 1)


def _external(model: Path) -> Iterator[Region]:
    import onnx

    for tensor in _tensors(_load(model)):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries.get("location") == model.name + ".data" and "length" in entries:
            item = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            yield int(entries.get("offset", 0)), int(entries["length"]), item


def _pieces(start: int, length: int, item: int) -> list[Region]:
    return [(start + skip, min(PIECE, length - skip), item) for skip in range(0, length, PIECE)]


def _load(path: Path) -> Any:
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
        if not model.graph.output:
            raise ValueError("it holds no graph with outputs")
    except Exception as problem:  # protobuf raises its own
        raise ArtifactError(one_line(f"{path.name}: no readable ONNX file: {problem}", 300)) from problem
    return model


def _tensors(model: Any) -> Iterator[Any]:
    def of(graph: Any) -> Iterator[Any]:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                if attribute.HasField("g"):
                    yield from of(attribute.g)
                for part in attribute.graphs:
                    yield from of(part)

    yield from of(model.graph)


def _onnx(path: Path, data: Any) -> Iterator[Region]:
    import onnx

    place = 0
    for tensor in _tensors(_load(path)):
        if len(tensor.raw_data) < _LEAST:
            continue
        # Tensors lie in the file in the order they are read in; one out of order is searched for from the start.
        start = data.find(tensor.raw_data, place)
        if start < 0:
            start = data.find(tensor.raw_data)
        if start >= 0:
            yield start, len(tensor.raw_data), onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            place = start + len(tensor.raw_data)


def _tflite(path: Path, data: Any) -> Iterator[Region]:
    import numpy as np

    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError:  # the codes work without it: every number is then one byte wide
        return
    widths = {
        schema.TensorType.FLOAT32: 4,
        schema.TensorType.INT32: 4,
        schema.TensorType.FLOAT16: 2,
        schema.TensorType.INT16: 2,
        schema.TensorType.INT64: 8,
    }
    start = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    try:
        model = schema.Model.GetRootAs(data, 0)
        for index in range(model.SubgraphsLength()):
            graph = model.Subgraphs(index)
            for place in range(graph.TensorsLength()):
                tensor = graph.Tensors(place)
                held = model.Buffers(tensor.Buffer()).DataAsNumpy()
                if not isinstance(held, int) and len(held) >= _LEAST:
                    yield held.__array_interface__["data"][0] - start, len(held), widths.get(tensor.Type(), 1)
    except Exception as problem:  # flatbuffers raises whatever the damaged offsets lead to
        raise ArtifactError(one_line(f"{path.name}: no TFLite file: {problem}", 300)) from problem
