"""TFLite files read through the flatbuffer schema that LiteRT ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeredux.errors import ArtifactError, one_line

_INTEGERS = (schema.TensorType.INT8, schema.TensorType.INT4, schema.TensorType.INT16)
# Operators that build or add a mask; a lowest-float constant elsewhere (padding before a maximum) stretches nothing.
_MASKING = {
    schema.BuiltinOperator.SELECT,
    schema.BuiltinOperator.SELECT_V2,
    schema.BuiltinOperator.ADD,
    schema.BuiltinOperator.SUB,
    schema.BuiltinOperator.MUL,
}


class Contents:
    """What a TFLite file holds. Raises ArtifactError when the bytes are no TFLite file."""

    def __init__(self, content: bytes, name: str) -> None:
        self.name = name
        if content[4:8] != b"TFL3":
            raise ArtifactError(f"{name}: no TFLite file: the identifier TFL3 is not at byte 4")
        try:
            self._model = schema.ModelT.InitFromPackedBuf(content, 0)
            if not self._model.subgraphs:
                raise ArtifactError(f"{name}: no TFLite file: it has no subgraph")
            self._check_buffers(len(content))
        except ArtifactError:
            raise
        except Exception as problem:  # flatbuffers raises whatever the damaged offsets lead to
            raise ArtifactError(one_line(f"{name}: no readable TFLite file: {problem}", 300)) from problem

    def _check_buffers(self, size: int) -> None:
        for graph in self._model.subgraphs:
            for tensor in graph.tensors:
                (tensor.name or b"").decode()  # a name that is no text shows here, not in the middle of a pass
                if not 0 <= tensor.buffer < len(self._model.buffers):
                    raise ArtifactError(
                        f"{self.name}: no readable TFLite file: tensor {_text(tensor.name)} has no buffer"
                    )
        for buffer in self._model.buffers:
            if buffer.offset > 1 and buffer.offset + buffer.size > size:
                raise ArtifactError(f"{self.name}: no readable TFLite file: it ends before its weights do")

    def operators(self) -> int:
        """The number of operators of all subgraphs."""
        return sum(len(graph.operators) for graph in self._model.subgraphs)

    def integer_constants(self) -> int:
        """The number of tensors stored as 4-, 8- or 16-bit integers with a scale."""
        return sum(
            tensor.type in _INTEGERS and self._stored(tensor) and tensor.quantization is not None
            for graph in self._model.subgraphs
            for tensor in graph.tensors
        )

    def lowest_mask(self) -> str | None:
        """The name of a float constant at or below -1e30 that a masking operator reads; None where there is none."""
        for graph in self._model.subgraphs:
            read = {
                index
                for operator in graph.operators
                if self._code(operator) in _MASKING
                for index in operator.inputs
                if index >= 0
            }
            for index in sorted(read):
                tensor = graph.tensors[index]
                if tensor.type != schema.TensorType.FLOAT32 or not self._stored(tensor):
                    continue
                values = np.frombuffer(bytes(self._model.buffers[tensor.buffer].data), np.float32)
                if values.size and float(values.min()) <= -1e30:
                    return _text(tensor.name)
        return None

    def _stored(self, tensor: Any) -> bool:
        buffer = self._model.buffers[tensor.buffer]
        return (buffer.data is not None and len(buffer.data) > 0) or buffer.size > 1

    def _code(self, operator: Any) -> int:
        code = self._model.operatorCodes[operator.opcodeIndex]
        # Codes below 127 are also in the older one-byte field; files of old converters hold only that.
        return max(int(code.builtinCode), int(code.deprecatedBuiltinCode))


def read(path: Path) -> Contents:
    """The contents of the file at `path`. Raises ArtifactError."""
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise ArtifactError(one_line(f"{path.name}: cannot be read: {problem}")) from problem
    return Contents(content, path.name)


def _text(name: bytes | None) -> str:
    return (name or b"").decode(errors="replace")
