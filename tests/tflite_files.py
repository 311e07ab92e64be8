"""Small TFLite files, written operator by operator, for the tests of sparse weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

Array = np.ndarray[Any, Any]
TYPES = {np.dtype(np.float32): 0, np.dtype(np.int32): 2, np.dtype(np.int8): 9, np.dtype(np.float16): 1}


class File:
    """A model of one subgraph under construction. Tensors are numbers; dtypes are NumPy's."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version, self.model.description = 3, b"test"
        self.model.buffers, self.model.operatorCodes = [schema.BufferT()], []
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators, self.graph.name = [], [], b"main"
        self.model.subgraphs = [self.graph]

    def tensor(
        self,
        name: str,
        shape: list[int],
        data: Array | None = None,
        dtype: Any = np.float32,
        scale: Array | float | None = None,
        zero: int = 0,
    ) -> int:
        """A tensor; a constant where `data` is given."""
        made = schema.TensorT()
        made.name, made.shape, made.buffer = name.encode(), shape, 0
        made.type = TYPES[np.dtype(dtype) if data is None else data.dtype]
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            made.buffer = len(self.model.buffers) - 1
        if scale is not None:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale = np.atleast_1d(np.asarray(scale, np.float32))
            made.quantization.zeroPoint = np.full(made.quantization.scale.size, zero, np.int64)
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def operator(self, name: str, options: str, inputs: list[int], out: int, **settings: Any) -> Any:
        """An operator; `settings` go into its options."""
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
        self.model.operatorCodes.append(code)
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = len(self.model.operatorCodes) - 1, inputs, [out]
        made.builtinOptionsType = getattr(schema.BuiltinOptions, options)
        made.builtinOptions = getattr(schema, f"{options}T")()
        for key, value in settings.items():
            setattr(made.builtinOptions, key, value)
        self.graph.operators.append(made)
        return made

    def dense(self, given: int, weight: Array, positions: int = 1, bias: bool = True) -> int:
        """y = relu(x w^T + b): a float layer."""
        rows, number = weight.shape[0], len(self.graph.operators)
        inputs = [given, self.tensor(f"w{number}", list(weight.shape), weight)]
        if bias:
            inputs.append(self.tensor(f"b{number}", [rows], np.linspace(-1, 1, rows).astype(np.float32)))
        out = self.tensor(f"y{number}", [positions, rows])
        self.operator("FULLY_CONNECTED", "FullyConnectedOptions", inputs, out, fusedActivationFunction=1)
        return out

    def write(self, path: Path, given: int, out: int) -> Path:
        """The file, with a signature that calls its input x and its output y."""
        self.graph.inputs, self.graph.outputs = [given], [out]
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
        signature.inputs, signature.outputs = [schema.TensorMapT()], [schema.TensorMapT()]
        signature.inputs[0].name, signature.inputs[0].tensorIndex = b"x", given
        signature.outputs[0].name, signature.outputs[0].tensorIndex = b"y", out
        self.model.signatureDefs = [signature]
        path.write_bytes(pack(self.model))
        return path


def pack(model: Any) -> bytes:
    """The model's bytes by the schema's own writer."""
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def blocky(rows: int, columns: int, block: int, keep: float, seed: int = 0) -> Array:
    """A float32 matrix of whose 1 x `block` blocks exactly round(keep * count) are not zero."""
    generator = np.random.default_rng(seed)
    count = rows * columns // block
    kept = np.zeros(count, bool)
    kept[generator.permutation(count)[: round(keep * count)]] = True
    values = generator.normal(size=(count, block)) * kept[:, None] / np.sqrt(columns * keep)
    return values.reshape(rows, columns).astype(np.float32)


def mlp(path: Path, block: int = 4, keep: float = 0.1, width: int = 256, layers: int = 2, positions: int = 1) -> Path:
    """A float MLP with zeros in its weights."""
    file = File()
    given = out = file.tensor("x", [positions, width])
    for layer in range(layers):
        out = file.dense(out, blocky(width, width, block, keep, layer), positions)
    return file.write(path, given, out)


def damaged(path: Path, how: str) -> None:
    """Harm the file at `path` in one of the ways of HARM."""
    data = path.read_bytes()
    if how in ("empty", "junk", "cut"):
        path.write_bytes({"empty": b"", "junk": b"\xff" * 500, "cut": data[: len(data) // 2]}[how])
        return
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    tensor = model.subgraphs[0].tensors[model.subgraphs[0].operators[0].inputs[1]]
    if how == "no buffer":
        tensor.buffer = 4000
    elif how == "huge shape":
        tensor.shape = [2**31 - 1, 2**31 - 1]
    elif how == "negative shape":
        tensor.shape = [-256, -256]
    elif how == "no such tensor":
        model.subgraphs[0].operators[0].inputs = [0, 99999, 2]
    elif how == "no such operator":
        model.subgraphs[0].operators[0].opcodeIndex = 77
    path.write_bytes(pack(model))


HARM = ("empty", "junk", "cut", "no buffer", "huge shape", "negative shape", "no such tensor", "no such operator")


def unguarded(source: Path, out: Path) -> Path:
    """The file as another tool would write it: sparse weights, nothing that keeps a delegate away."""
    from edgeredux.passes.tflite import packing, sparse_graph
    from edgeredux.passes.tflite.sparse_encoding import encode, parameters

    content = source.read_bytes()
    model = packing.load(content, source.name)
    for weight in sparse_graph.weights(model, source.name):
        item, encoded = model.subgraphs[0].tensors[weight.tensor], encode(weight.values, 4)
        item.sparsity = parameters(encoded)
        model.buffers[item.buffer].data = np.frombuffer(encoded.values.tobytes(), np.uint8)
    out.write_bytes(pack(model))
    return out
