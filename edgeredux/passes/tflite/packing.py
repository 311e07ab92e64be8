"""TFLite models back to bytes: nothing that no tensor reads, weights where the kernels expect them."""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeredux.errors import ArtifactError

# The schema asks for it (force_align), the generated Python writer does not do it. Kernels load weights by vectors.
_ALIGNMENT = 16
_LARGEST = (1 << 31) - 1  # flatbuffers' offsets are 32 bits wide


class _Aligned(schema.BufferT):  # type: ignore[misc]
    """A buffer whose bytes begin at a multiple of 16 in the file."""

    def Pack(self, builder: Any) -> Any:  # noqa: N802 - the schema's own name
        if self.data is None or len(self.data) == 0:
            return super().Pack(builder)
        content = np.ascontiguousarray(self.data).tobytes()
        builder.StartVector(1, len(content), _ALIGNMENT)
        builder.head -= len(content)
        builder.Bytes[builder.head : builder.head + len(content)] = content
        data = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


def load(content: bytes, name: str) -> Any:
    """The model as `ai_edge_litert`'s objects, weights that lie behind the flatbuffer brought into it.

    Raises ArtifactError when the file keeps options of custom operators behind it, which only their makers can move.
    """
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for buffer in model.buffers:
        if buffer.offset > 1:
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    for index in (*(item.buffer for item in model.metadata or ()), *_older(model)):
        if not 0 <= index < len(model.buffers):
            raise ArtifactError(f"{name}: no readable TFLite file: its metadata has no buffer")
    if any(operator.largeCustomOptionsOffset > 1 for graph in model.subgraphs for operator in graph.operators or ()):
        raise ArtifactError(f"{name}: a custom operator keeps its options behind the model, so it cannot be rewritten")
    return model


def save(model: Any, name: str) -> bytes:
    """The file's bytes, the same for the same model; `model` loses the buffers that nothing refers to.

    Raises ArtifactError beyond 2 GiB, where a flatbuffer ends.
    """
    owners = [*(tensor for graph in model.subgraphs for tensor in graph.tensors or ()), *(model.metadata or ())]
    kept = sorted({0, *(owner.buffer for owner in owners), *_older(model)})
    place = {old: new for new, old in enumerate(kept)}
    for owner in owners:
        owner.buffer = place[owner.buffer]
    if model.metadataBuffer is not None:
        model.metadataBuffer = [place[index] for index in _older(model)]
    model.buffers = [_aligned(model.buffers[index]) for index in kept]
    size = sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None)
    if size > _LARGEST - (1 << 20):
        raise ArtifactError(f"{name}: {size} bytes of weights; a TFLite file that is rewritten holds at most 2 GiB")
    builder = flatbuffers.Builder(size + (1 << 16))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _older(model: Any) -> list[int]:
    """Buffers named the older way, by the model itself."""
    return [] if model.metadataBuffer is None else [int(index) for index in model.metadataBuffer]


def _aligned(buffer: Any) -> _Aligned:
    made = _Aligned()
    made.data = buffer.data
    return made
