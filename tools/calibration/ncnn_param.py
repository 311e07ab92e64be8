"""The operators of an ncnn .param graph: shapes are those it notes for each layer, inferred where it notes none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeredux.prediction.operators import Kind, Operator, contraction, convolution_kind

Shape = tuple[int, ...]  # width, height, channels, as many as there are
_FREE = ("Input", "Split", "Dropout", "Flatten", "Reshape", "MemoryData", "Noop", "ExpandDims", "Squeeze")
_KINDS: dict[str, Kind] = {
    "BinaryOp": "elementwise",
    "Eltwise": "elementwise",
    "ReLU": "elementwise",
    "Clip": "elementwise",
    "PReLU": "elementwise",
    "BatchNorm": "elementwise",
    "Scale": "elementwise",
    "UnaryOp": "elementwise",
    "HardSwish": "activation",
    "HardSigmoid": "activation",
    "Sigmoid": "activation",
    "Swish": "activation",
    "GELU": "activation",
    "TanH": "activation",
    "Softmax": "softmax",
    "LayerNorm": "norm",
    "LRN": "norm",
    "Normalize": "norm",
    "Pooling": "reduce",
    "Reduction": "reduce",
    "Interp": "resize",
    "Upsample": "resize",
    "Concat": "move",
    "Slice": "move",
    "Crop": "move",
    "Permute": "move",
    "ShuffleChannel": "move",
    "Padding": "move",
    "PriorBox": "move",
    "DetectionOutput": "move",
    "Yolov3DetectionOutput": "move",
    "YoloDetectionOutput": "move",
    "Reorg": "move",
}


@dataclass(frozen=True)
class _Layer:
    kind: str
    name: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    values: dict[int, int]
    shapes: Sequence[Shape]  # noted ones, one per output

    def get(self, key: int, otherwise: int) -> int:
        return self.values.get(key, otherwise)


# What benchncnn.cpp feeds to the graphs that do not note their input's shape.
_IMAGES: dict[str, Shape] = {"FastestDet": (352, 352, 3), "vision_transformer": (384, 384, 3)}


def operators(path: Path) -> list[Operator]:
    """What one run of the graph does. Raises ValueError on a layer whose shape can be neither read nor inferred."""
    shapes: dict[str, Shape] = {}
    found: list[Operator] = []
    for line in path.read_text(encoding="utf-8").splitlines()[2:]:
        if not line.strip():
            continue
        layer = _parse(line)
        given = [shapes[name] for name in layer.inputs]
        made = list(layer.shapes) or _infer(layer, given, path)
        shapes.update(zip(layer.outputs, made, strict=True))
        found += _operators(layer, given, made)
    return found


def _parse(line: str) -> _Layer:
    kind, name, inputs, outputs, *rest = line.split()
    n, m = int(inputs), int(outputs)
    values: dict[int, int] = {}
    shapes: list[Shape] = []
    for item in rest[n + m :]:
        key, _, text = item.partition("=")
        numbers = [float(part) for part in text.split(",")]
        if int(key) == -23330:
            body = [int(number) for number in numbers[1:]]
            shapes = [tuple(body[i + 1 : i + 1 + body[i]]) for i in range(0, len(body), 4)]
        elif int(key) > -23300:
            values[int(key)] = int(numbers[0])
    shapes = [] if any(not shape or 0 in shape for shape in shapes) else shapes
    return _Layer(kind, name, rest[:n], rest[n : n + m], values, shapes)


def _infer(layer: _Layer, given: Sequence[Shape], path: Path) -> list[Shape]:
    kind = layer.kind
    if kind in ("Input", "MemoryData"):
        said = tuple(layer.values[i] for i in (0, 1, 2) if i in layer.values)
        return [said or _IMAGES[path.stem]]
    first = given[0]
    if kind == "Reshape":
        wanted = [layer.values[i] for i in (0, 1, 2) if i in layer.values]
        rest = math.prod(first) // abs(math.prod(wanted)) if -1 in wanted else 1
        return [tuple(rest if size == -1 else size for size in wanted)]
    if kind in ("Convolution", "ConvolutionDepthWise"):
        size, stride, pad = layer.get(1, 1), layer.get(3, 1), layer.get(4, 0)
        places = [math.ceil(n / stride) if pad < 0 else (n + 2 * pad - size) // stride + 1 for n in first[:2]]
        return [(places[0], places[1], layer.values[0])]
    if kind == "Pooling":
        if layer.get(4, 0):
            return [(first[2],)]
        size, stride, pad = layer.get(1, 1), layer.get(2, 1), layer.get(3, 0)
        return [((first[0] + 2 * pad - size) // stride + 1, (first[1] + 2 * pad - size) // stride + 1, first[2])]
    if kind == "InnerProduct":
        return [(layer.values[0], *first[1:2])] if len(first) == 2 else [(layer.values[0],)]
    if kind == "Gemm":
        return [(layer.values[8], *first[1:])]
    if kind == "Permute":
        return [tuple(reversed(first))] if len(first) == 2 else [first]
    if kind == "Concat":
        return (
            [(first[0], sum(shape[1] for shape in given))]
            if len(first) == 2
            else [(*first[:-1], sum(s[-1] for s in given))]
        )
    if kind == "Interp":
        return [(2 * first[0], 2 * first[1], first[2])]
    if kind == "Slice":
        return [(*first[:-1], first[-1] // len(layer.outputs)) for _ in layer.outputs]
    if kind == "Crop" and len(first) == 2:
        return [(first[0], 1)]
    if kind in _KINDS or kind in (*_FREE, "MultiHeadAttention"):
        return [first for _ in layer.outputs]
    raise ValueError(f"{path.name}: layer {layer.name} of kind {kind}: shape not known")


def _operators(layer: _Layer, given: Sequence[Shape], made: Sequence[Shape]) -> list[Operator]:
    kind = layer.kind
    reads, writes = float(sum(map(math.prod, given))), float(sum(map(math.prod, made)))
    if kind in ("Convolution", "ConvolutionDepthWise"):
        size = layer.get(1, 1) * layer.get(11, layer.get(1, 1))
        outputs, groups = layer.values[0], layer.get(7, 1) if kind == "ConvolutionDepthWise" else 1
        per_group = layer.values[6] // size // (outputs // groups) // groups
        rows = math.prod(made[0]) / outputs
        which = convolution_kind(groups, per_group * groups, (size,), (layer.get(2, 1),))
        product = contraction(
            which,
            rows,
            per_group * size,
            outputs // groups,
            groups=groups,
            reads=reads,
            writes=writes,
            channels=per_group,
            strided=layer.get(3, 1) > 1,
            name=layer.name,
        )
        return [product]
    if kind in ("Deconvolution", "DeconvolutionDepthWise"):
        size = layer.get(1, 1) * layer.get(11, layer.get(1, 1))
        outputs, groups = layer.values[0], layer.get(7, 1) if kind.endswith("Wise") else 1
        per_group = layer.values[6] // size // (outputs // groups) // groups
        rows = math.prod(given[0]) / (per_group * groups)
        return [
            contraction("deconv", rows, per_group, outputs // groups * size, groups=groups, reads=reads, writes=writes)
        ]
    if kind == "InnerProduct":
        outputs = layer.values[0]
        inner = layer.values[2] // outputs
        return [
            contraction("linear", max(1, math.prod(made[0]) // outputs), inner, outputs, reads=reads, writes=writes)
        ]
    if kind == "Gemm":
        rows, columns, inner = math.prod(given[0][1:]), layer.values[8], layer.values[9]
        return [contraction("linear", rows, inner, columns, reads=reads, writes=writes)]
    if kind == "MultiHeadAttention":
        width, heads = layer.values[0], layer.values[1]
        rows, one = given[0][1], math.prod(given[0])
        product = contraction("linear", rows, width, width, reads=one, writes=one)
        size = width // heads
        scores = rows * rows * heads
        return [
            *[product] * 4,
            contraction("matmul", rows, size, rows, groups=heads, reads=2 * one, writes=scores, stored=False),
            Operator("softmax", scores, scores, depth=rows),
            contraction("matmul", rows, rows, size, groups=heads, reads=scores + one, writes=one, stored=False),
        ]
    if kind in _FREE:
        return []
    if kind not in _KINDS:
        raise ValueError(f"layer {layer.name}: kind {kind} is not known")
    return [Operator(_KINDS[kind], reads, writes, depth=float(made[0][-1]), name=layer.name)]
