"""The operators of an ONNX file at given input shapes, told by ONNX's own inference; what is constant is left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeredux.errors import ArtifactError, one_line
from edgeredux.prediction.onnx_shapes import ATTENTION, CONVOLUTIONS, PRODUCTS, fixed, inferred
from edgeredux.prediction.operators import Kind, Operator, contraction, convolution_kind

Shape = tuple[int, ...]
_FREE = {
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Identity",
    "Shape",
    "Cast",
    "CastLike",
    "Constant",
    "Dropout",
    "Size",
    "Range",
    "ConstantOfShape",
}
_CLAMPS = {"Relu", "Clip", "LeakyRelu", "PRelu", "BatchNormalization", "Min", "Max"}
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(
        (
            "Gelu",
            "FastGelu",
            "BiasGelu",
            "QuickGelu",
            "Sigmoid",
            "Tanh",
            "HardSwish",
            "HardSigmoid",
            "Erf",
            "Exp",
            "Elu",
            "Mish",
            "Softplus",
            "Log",
            "Sin",
            "Cos",
            "Swish",
            "Sqrt",
            "Silu",
        ),
        "activation",
    ),
    **dict.fromkeys(("Softmax", "LogSoftmax"), "softmax"),
    **dict.fromkeys(
        (
            "LayerNormalization",
            "SkipLayerNormalization",
            "GroupNormalization",
            "InstanceNormalization",
            "RMSNormalization",
            "SimplifiedLayerNormalization",
            "SkipSimplifiedLayerNormalization",
            "LpNormalization",
            "LRN",
            "EmbedLayerNormalization",
        ),
        "norm",
    ),
    **dict.fromkeys(
        (
            "MaxPool",
            "AveragePool",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "ReduceMean",
            "ReduceSum",
            "ReduceMax",
            "ReduceMin",
            "ReduceL2",
            "ArgMax",
            "ArgMin",
            "TopK",
            "CumSum",
            "ReduceProd",
        ),
        "reduce",
    ),
    **dict.fromkeys(("Resize", "Upsample", "GridSample"), "resize"),
    **dict.fromkeys(
        (
            "Transpose",
            "Concat",
            "Slice",
            "Split",
            "Gather",
            "GatherElements",
            "GatherND",
            "Pad",
            "Tile",
            "Expand",
            "DepthToSpace",
            "SpaceToDepth",
            "ScatterND",
            "ScatterElements",
            "Where",
            "Trilu",
            "RotaryEmbedding",
            "OneHot",
        ),
        "move",
    ),
}
_INTEGER = {
    "MatMulInteger",
    "QLinearMatMul",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "QGemm",
    "QLinearConv",
    "ConvInteger",
}
_WEIGHT_AT = {"QLinearMatMul": 3, "QLinearConv": 3, "QGemm": 3}
_SIXTEEN = (4, 5)  # onnx.TensorProto.UINT16, INT16


def operators(path: Path, shapes: Mapping[str, Sequence[int]], run: bool = True) -> list[Operator]:
    """What one run of the file does on inputs of these shapes, by name. `run`: where inference stops, run it once.

    Raises ArtifactError where shapes cannot be told, and on operators whose work is not known (loops, branches).
    """
    return _Graph(path, shapes, run).operators()


class _Graph:
    def __init__(self, path: Path, shapes: Mapping[str, Sequence[int]], run: bool) -> None:
        import onnx

        self.path = path
        try:
            model = onnx.load(str(path), load_external_data=False)
        except Exception as problem:  # protobuf raises its own kind for a damaged file
            raise ArtifactError(one_line(f"{path.name}: no ONNX file: {problem}")) from problem
        for given in model.graph.input:
            if given.name in shapes:
                dims = given.type.tensor_type.shape.dim
                for dim, size in zip(dims, shapes[given.name], strict=False):
                    dim.ClearField("dim_param")
                    dim.dim_value = int(size)
        self.constants = {item.name: tuple(item.dims) for item in model.graph.initializer}
        self.constants |= {item.values.name: tuple(item.dims) for item in model.graph.sparse_initializer}
        stale = [item.name for item in (*model.graph.value_info,)]
        if stale:
            del model.graph.value_info[:]  # shapes of other inputs
        known = inferred(model, path, run)
        self.nodes = list(known.graph.node)
        self.shapes: dict[str, Shape] = dict(self.constants)
        for item in (*known.graph.value_info, *known.graph.input, *known.graph.output):
            dims = item.type.tensor_type.shape.dim
            if fixed(item):
                self.shapes[item.name] = tuple(dim.dim_value for dim in dims)
        self.types = {item.name: item.data_type for item in model.graph.initializer}
        self.producers = {name: node for node in self.nodes for name in node.output}
        self.made_by: dict[str, str] = {}
        self.maps: dict[str, bool] = {}

    def operators(self) -> list[Operator]:
        found: list[Operator] = []
        for node in self.nodes:
            live = [name for name in node.input if name and name not in self.constants]
            if not live and node.op_type != "Constant":
                self._fold(node)
                continue
            if node.op_type == "Constant":
                self._fold(node)
                continue
            made = self._record(node, live)
            kind = made[-1].kind if made else self.made_by.get(live[0], "input")
            found += made
            for name in node.output:
                self.made_by[name] = kind
                self.maps[name] = self._is_map(node, live[0], name)
        return found

    def _fold(self, node: Any) -> None:
        for name in node.output:
            if name:
                self.constants[name] = self.shapes.get(name, ())

    def _is_map(self, node: Any, given: str, made: str) -> bool:
        if node.op_type in CONVOLUTIONS:
            return True
        rank = len(self.shapes.get(made, ()))
        if node.op_type in ("Reshape", "Transpose", *PRODUCTS):
            same = rank == len(self.shapes.get(given, ())) == 4
            return node.op_type == "Reshape" and same and self.maps.get(given, False)
        return self.maps.get(given, rank >= 4)

    def _shape(self, name: str, node: Any) -> Shape:
        if name not in self.shapes:
            raise ArtifactError(
                f"{self.path.name}: the shape of {name!r} ({node.op_type}) cannot be told from the input shapes; "
                "export with fixed shapes or run pass fold"
            )
        return self.shapes[name]

    def _record(self, node: Any, live: Sequence[str]) -> list[Operator]:
        kind = node.op_type
        if kind in ("If", "Loop", "Scan"):
            raise ArtifactError(f"{self.path.name}: {kind} {node.name!r}: how much it computes depends on values")
        if kind in _FREE or not node.output:
            return []
        if kind in ("LSTM", "GRU", "RNN"):
            return self._recurrent(node)
        if not node.output[0] or node.output[0] not in self.shapes:
            # Integers that describe shapes are not always inferred, and cost nothing.
            if kind in PRODUCTS | CONVOLUTIONS | ATTENTION:
                self._shape(node.output[0], node)
            return []
        made = self._shape(node.output[0], node)
        reads = float(sum(math.prod(self.shapes.get(name, ())) for name in live))
        writes = float(math.prod(made))
        if kind in CONVOLUTIONS:
            return [self._convolution(node, reads, writes, made)]
        if kind in PRODUCTS:
            return [self._product(node, reads, writes, made)]
        if kind == "MatMulNBits":
            values = {a.name: a.i for a in node.attribute}
            return [
                contraction(
                    "linear", writes / values["N"], values["K"], values["N"], reads=reads, writes=writes, name="nbits"
                )
            ]
        if kind in ATTENTION:
            return self._attention(node, made)
        before = self.made_by.get(live[0], "input")
        if kind in _CLAMPS and before not in ("input", "move"):
            return []
        if kind in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"):
            return [Operator("elementwise", reads, writes, depth=float(made[-1] if made else 1), name="quantize")]
        which: Kind = _KINDS.get(kind, "elementwise")
        if kind in ("Slice", "Gather", "Split"):
            reads = writes
        if kind == "Mul" and before == "activation" and self._gates(node, live):
            return []  # x * sigmoid(x): one operator on every runtime that has it
        return [Operator(which, reads, writes, depth=self._depth(node, live, made), name=kind)]

    def _gates(self, node: Any, live: Sequence[str]) -> bool:
        """Whether a Mul multiplies a map with a function of itself (SiLU, hard swish), of the same size."""
        sizes = {math.prod(self.shapes.get(name, ())) for name in live}
        return len(live) == 2 and len(sizes) == 1 and any(self.made_by.get(name) == "activation" for name in live)

    def _depth(self, node: Any, live: Sequence[str], made: Shape) -> float:
        if len(made) < 2:
            return float(math.prod(made))
        is_map = self.maps.get(live[0], len(made) >= 4)
        return float(made[1] if is_map and len(made) > 2 else made[-1])

    def _convolution(self, node: Any, reads: float, writes: float, made: Shape) -> Operator:
        flags = {a.name: a.i for a in node.attribute if a.type == 2}
        values = {a.name: list(a.ints) for a in node.attribute if a.type == 7}
        weight = self._shape(node.input[_WEIGHT_AT.get(node.op_type, 1)], node)
        groups, bits = flags.get("group", 1), self._bits(node)
        size = math.prod(weight[2:])
        if node.op_type == "ConvTranspose":
            value = self._shape(node.input[0], node)
            rows = value[0] * math.prod(value[2:])
            return contraction(
                "deconv", rows, weight[0] // groups, weight[1] * size, groups=groups, reads=reads, writes=writes
            )
        which = convolution_kind(groups, weight[1] * groups, weight[2:], values.get("dilations", ()))
        return contraction(
            which,
            made[0] * math.prod(made[2:]),
            weight[1] * size,
            weight[0] // groups,
            groups=groups,
            reads=reads,
            writes=writes,
            channels=weight[1],
            strided=max(values.get("strides", (1,)), default=1) > 1,
            bits=bits,
        )

    def _bits(self, node: Any) -> int:
        """Of the integers that it multiplies; 0 in float. Between DequantizeLinear it is computed as they say."""
        if node.op_type in _INTEGER:
            return 8
        made_by = self.producers.get(node.input[0])
        if made_by is None or made_by.op_type != "DequantizeLinear":
            return 0
        wide = len(made_by.input) > 2 and self.types.get(made_by.input[2]) in _SIXTEEN
        return 16 if wide else 8

    def _product(self, node: Any, reads: float, writes: float, made: Shape) -> Operator:
        left, right = self._shape(node.input[0], node), self._shape(node.input[_WEIGHT_AT.get(node.op_type, 1)], node)
        flags = {a.name: a.i for a in node.attribute if a.type == 2}
        if flags.get("transA"):
            left = (*left[:-2], left[-1], left[-2])
        inner = left[-1]
        columns = made[-1] if made else 1
        names = [node.input[0], node.input[_WEIGHT_AT.get(node.op_type, 1)]]
        stored = any(name in self.constants for name in names)
        bits = self._bits(node)
        rows, groups = math.prod(made) / columns, 1.0
        if len(right) > 2 and math.prod(right[:-2]) > 1:
            groups = float(math.prod(made[:-2]))
            rows /= groups
        return contraction(
            "linear" if stored else "matmul",
            rows,
            inner,
            columns,
            groups=groups,
            reads=reads,
            writes=writes,
            stored=stored,
            bits=bits,
            name=node.op_type,
        )

    def _attention(self, node: Any, made: Shape) -> list[Operator]:
        values = {a.name: a.i for a in node.attribute if a.type == 2}
        query = self._shape(node.input[0], node)
        heads = values.get("num_heads") or values.get("q_num_heads") or 1
        width, rows = made[-1], query[-2]
        keys = self.shapes.get(node.input[1], query) if len(node.input) > 1 and node.input[1] else query
        length = keys[-2] if len(keys) >= 3 else rows
        for name in node.input[3:]:
            past = self.shapes.get(name, ())
            if len(past) == 4 and name not in self.constants:
                length = max(length, past[2] + rows)
        batch, size = query[0], width // heads
        scores, one = float(batch * heads * rows * length), float(batch * rows * width)
        found = [
            contraction("matmul", rows, size, length, groups=batch * heads, reads=2 * one, writes=scores, stored=False),
            Operator("softmax", scores, scores, depth=float(length)),
            contraction(
                "matmul", rows, length, size, groups=batch * heads, reads=scores + one, writes=one, stored=False
            ),
        ]
        if node.op_type == "Attention" and len(node.input) > 1 and node.input[1] in self.constants:
            weight = self.constants[node.input[1]]
            found.insert(0, contraction("linear", batch * rows, weight[0], weight[1], reads=one, writes=3 * one))
        return found

    def _recurrent(self, node: Any) -> list[Operator]:
        steps, batch, width = self._shape(node.input[0], node)
        w, r = self._shape(node.input[1], node), self._shape(node.input[2], node)
        one = contraction("linear", batch, w[2] + r[2], w[1], groups=w[0], reads=batch * width, writes=batch * r[2])
        gate = Operator("activation", batch * w[1], batch * r[2], depth=float(r[2]))
        return [one, gate] * steps
