"""Random ONNX graphs with dead weights, by seed: whatever operators a network has, in whatever order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from tiny_graphs import Array, save

BATCH = "n"
Shape = tuple[Any, ...]


class RandomGraph:
    """Grows a graph from one input, layer by layer; half of the layers have dead rows or columns."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: dict[str, Array] = {}
        self.values: list[tuple[str, Shape]] = []

    def add(self, kind: str, inputs: list[str], shape: Shape, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"{kind}{len(self.nodes)}", **attributes))
        self.values.append((name, shape))
        return name

    def constant(self, array: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.weights)}"
        self.weights[name] = np.asarray(array, dtype)
        return name

    def normal(self, *shape: int) -> Array:
        return (self.random.normal(size=shape) / 2).astype(np.float32)

    def dead(self, array: Array, axes: tuple[int, ...]) -> Array:
        """Zero a random third of the positions along some of the axes, or in blocks as heads have them."""
        for axis in axes:
            if self.random.random() < 0.6:
                size = array.shape[axis]
                gone = self.random.random(size) < 0.4
                if self.random.random() < 0.4 and size % 4 == 0:
                    gone = np.repeat(self.random.random(size // 4) < 0.5, 4)
                place: list[Any] = [slice(None)] * array.ndim
                place[axis] = gone
                array[tuple(place)] = 0
        return array

    def bias(self, size: int) -> Array:
        kind = self.random.integers(3)
        return (
            np.zeros(size, np.float32)
            if kind == 0
            else self.dead(self.normal(size), (0,))
            if kind == 1
            else self.normal(size)
        )

    def pick(self, rank: int | None = None) -> tuple[str, Shape] | None:
        found = [value for value in self.values[-8:] if rank is None or len(value[1]) == rank]
        return found[self.random.integers(len(found))] if found else None

    # Layers. Each takes one value of a rank it can use, and leaves one.

    def linear(self, name: str, shape: Shape) -> None:
        out = int(self.random.choice([8, 12, 16]))
        weight = self.constant(self.dead(self.normal(shape[-1], out), (0, 1)))
        made = self.add("MatMul", [name, weight], (*shape[:-1], out))
        if self.random.random() < 0.7:
            self.add("Add", [made, self.constant(self.bias(out))], (*shape[:-1], out))

    def gemm(self, name: str, shape: Shape) -> None:
        out = int(self.random.choice([6, 8, 12]))
        turned = int(self.random.integers(2))
        weight = self.dead(self.normal(shape[1], out), (0, 1))
        inputs = [name, self.constant(weight.T if turned else weight)]
        if self.random.random() < 0.7:
            inputs.append(self.constant(self.bias(out) if self.random.random() < 0.8 else self.normal(1)))
        self.add("Gemm", inputs, (shape[0], out), transB=turned)

    def conv(self, name: str, shape: Shape) -> None:
        channels = shape[1]
        groups = int(self.random.choice([g for g in (1, 1, 2, 4, channels) if channels % g == 0]))
        out = groups * int(self.random.integers(1, 4)) if groups > 1 else int(self.random.choice([4, 6, 8]))
        size, pad = (3, 1) if self.random.random() < 0.5 else (1, 0)
        weight = self.dead(self.normal(out, channels // groups, size, size), (0, 1))
        inputs = [name, self.constant(weight)]
        if self.random.random() < 0.6:
            inputs.append(self.constant(self.bias(out)))
        self.add("Conv", inputs, (shape[0], out, *shape[2:]), pads=[pad] * 4, group=groups)

    def transposed(self, name: str, shape: Shape) -> None:
        groups = int(self.random.choice([g for g in (1, 2) if shape[1] % g == 0]))
        weight = self.dead(self.normal(shape[1], 3, 1, 1), (0, 1))
        self.add("ConvTranspose", [name, self.constant(weight)], (shape[0], 3 * groups, *shape[2:]), group=groups)

    def norm(self, name: str, shape: Shape) -> None:
        size = shape[1]
        vectors = [
            self.dead(self.normal(size), (0,)),
            self.bias(size),
            self.normal(size),
            np.abs(self.normal(size)) + 0.5,
        ]
        self.add("BatchNormalization", [name, *map(self.constant, vectors)], shape)

    def instance(self, name: str, shape: Shape) -> None:
        vectors = [self.dead(self.normal(shape[1]), (0,)), self.bias(shape[1])]
        self.add("InstanceNormalization", [name, *map(self.constant, vectors)], shape)

    def layer_norm(self, name: str, shape: Shape) -> None:
        vectors = [self.dead(self.normal(shape[-1]), (0,)), self.bias(shape[-1])]
        self.add("LayerNormalization", [name, *map(self.constant, vectors)], shape, axis=-1)

    def activation(self, name: str, shape: Shape) -> None:
        self.add(
            str(self.random.choice(["Relu", "Gelu", "Sigmoid", "Tanh", "Neg", "Abs", "Identity", "HardSwish"])),
            [name],
            shape,
        )

    def scale(self, name: str, shape: Shape) -> None:
        axis = 1 if len(shape) == 4 else len(shape) - 1
        wide = [1] * (len(shape) - axis)
        wide[0] = shape[axis]
        vector = self.dead(self.normal(shape[axis]), (0,)).reshape(wide)
        self.add(str(self.random.choice(["Mul", "Add", "Sub", "Max"])), [name, self.constant(vector)], shape)

    def together(self, name: str, shape: Shape) -> None:
        others = [value for value in self.values if value[1] == shape]
        other = others[self.random.integers(len(others))][0]
        self.add(str(self.random.choice(["Add", "Mul", "Sub", "Sum"])), [name, other], shape)

    def concat(self, name: str, shape: Shape) -> None:
        axis = 1 if len(shape) == 4 else len(shape) - 1
        others = [
            v
            for v in self.values
            if len(v[1]) == len(shape) and v[1][:axis] + v[1][axis + 1 :] == shape[:axis] + shape[axis + 1 :]
        ]
        other, size = others[self.random.integers(len(others))]
        if shape[axis] + size[axis] <= 24:
            self.add("Concat", [name, other], (*shape[:axis], shape[axis] + size[axis], *shape[axis + 1 :]), axis=axis)

    def split(self, name: str, shape: Shape) -> None:
        axis = 1 if len(shape) == 4 else len(shape) - 1
        if shape[axis] % 2 or shape[axis] < 4:
            return
        half = (*shape[:axis], shape[axis] // 2, *shape[axis + 1 :])
        name_a, name_b = f"s{len(self.nodes)}a", f"s{len(self.nodes)}b"
        self.nodes.append(
            helper.make_node(
                "Split", [name], [name_a, name_b], name=f"Split{len(self.nodes)}", axis=axis, num_outputs=2
            )
        )
        self.values += [(name_a, half), (name_b, half)]

    def cut(self, name: str, shape: Shape) -> None:
        axis = 1 if len(shape) == 4 else len(shape) - 1
        size = shape[axis]
        start, end = sorted(self.random.choice(size + 1, 2, replace=False).tolist())
        if end - start < 2:
            return
        ends = 2**62 if end == size else end
        inputs = [name, *(self.constant([x], np.int64) for x in (start - size if start else 0, ends, axis))]
        self.add("Slice", inputs, (*shape[:axis], end - start, *shape[axis + 1 :]))

    def gather(self, name: str, shape: Shape) -> None:
        axis = 1 if len(shape) == 4 else len(shape) - 1
        index = self.random.integers(-shape[axis], shape[axis], int(self.random.integers(2, 9)))
        self.add(
            "Gather", [name, self.constant(index, np.int64)], (*shape[:axis], len(index), *shape[axis + 1 :]), axis=axis
        )

    def heads(self, name: str, shape: Shape) -> None:
        """Self-attention over three projections of one value, or of itself."""
        width, before = 16, len(self.values)
        parts = []
        for _ in range(3):
            made = self.add(
                "MatMul", [name, self.constant(self.dead(self.normal(shape[-1], width), (1,)))], (*shape[:2], width)
            )
            made = self.add("Add", [made, self.constant(self.bias(width))], (*shape[:2], width))
            made = self.add(
                "Reshape",
                [made, self.constant([0, 0, int(self.random.choice([4, -1])), 4], np.int64)],
                (*shape[:2], 4, 4),
            )
            parts.append(self.add("Transpose", [made], (shape[0], 4, shape[1], 4), perm=[0, 2, 1, 3]))
        turned = self.add("Transpose", [parts[1]], (shape[0], 4, 4, shape[1]), perm=[0, 1, 3, 2])
        scores = self.add("MatMul", [parts[0], turned], (shape[0], 4, shape[1], shape[1]))
        if self.random.random() < 0.7:
            scores = self.add("Softmax", [scores], (shape[0], 4, shape[1], shape[1]), axis=-1)
        made = self.add("MatMul", [scores, parts[2]], (shape[0], 4, shape[1], 4))
        made = self.add("Transpose", [made], (shape[0], shape[1], 4, 4), perm=[0, 2, 1, 3])
        self.add(
            "Reshape", [made, self.constant([0, 0, int(self.random.choice([16, -1]))], np.int64)], (*shape[:2], width)
        )
        del self.values[before:-1]

    def pool(self, name: str, shape: Shape) -> None:
        kind = str(self.random.choice(["MaxPool", "AveragePool"]))
        self.add(kind, [name], shape, kernel_shape=[3, 3], pads=[1] * 4)

    def pad(self, name: str, shape: Shape) -> None:
        if shape[1] <= 16:
            pads = self.constant([0, 2, 0, 0, 0, 1, 0, 0], np.int64)
            self.add("Pad", [name, pads], (shape[0], shape[1] + 3, *shape[2:]))

    def shuffle(self, name: str, shape: Shape) -> None:
        before = len(self.values)
        if shape[1] % 2 == 0:
            made = self.add(
                "Reshape",
                [name, self.constant([0, 2, shape[1] // 2, 5, 5], np.int64)],
                (shape[0], 2, shape[1] // 2, 5, 5),
            )
            made = self.add("Transpose", [made], (shape[0], shape[1] // 2, 2, 5, 5), perm=[0, 2, 1, 3, 4])
            self.add("Reshape", [made, self.constant([0, shape[1], 5, 5], np.int64)], shape)
            del self.values[before:-1]

    def flatten(self, name: str, shape: Shape) -> None:
        kind = self.random.integers(3)
        if kind == 0:
            self.add("Flatten", [name], (shape[0], shape[1] * 25))
        elif kind == 1:
            self.add("Flatten", [self.add("GlobalAveragePool", [name], (*shape[:2], 1, 1))], shape[:2])
            del self.values[-2]
        else:
            self.add("ReduceMean", [name, self.constant([2, 3], np.int64)], shape[:2], keepdims=0)

    def mean(self, name: str, shape: Shape) -> None:
        kind = str(self.random.choice(["ReduceMean", "ReduceMax", "ReduceSum"]))
        self.add(kind, [name, self.constant([1], np.int64)], (shape[0], shape[2]), keepdims=0)


LAYERS = {
    4: ("conv", "conv", "conv", "transposed", "norm", "instance", "pool", "pad", "shuffle", "flatten"),
    3: ("linear", "linear", "heads", "layer_norm", "mean"),
    2: ("linear", "gemm", "gemm"),
}
ANY = ("activation", "activation", "scale", "together", "together", "concat", "split", "cut", "gather")


def random_graph(path: Path, seed: int, layers: int = 14) -> tuple[Path, dict[str, Array]]:
    """A file and an input for it. Images [n, 4, 5, 5] or sequences [n, 6, 8]."""
    grown = RandomGraph(seed)
    shape: Shape = (BATCH, 4, 5, 5) if seed % 2 else (BATCH, 6, 8)
    grown.values.append(("x", shape))
    for _ in range(layers):
        value = grown.pick()
        assert value is not None
        kinds = LAYERS.get(len(value[1]), ()) + ANY
        getattr(grown, str(grown.random.choice(kinds)))(*value)
    ends = [value for value in grown.values[-3:] if value[0] != "x"] or [(grown.add("Neg", ["x"], shape), shape)]
    for name, size in ends:  # a live reader behind each, so that not all has to stay as it is
        if len(size) == 4:
            made = grown.add(
                "Conv",
                [name, grown.constant(grown.dead(grown.normal(3, size[1], 1, 1), (1,)))],
                (size[0], 3, *size[2:]),
            )
        else:
            made = grown.add(
                "MatMul", [name, grown.constant(grown.dead(grown.normal(size[-1], 3), (0,)))], (*size[:-1], 3)
            )
        grown.values[-1] = (made, grown.values[-1][1])
    outputs = dict(grown.values[-len(ends) :])
    used = {name for node in grown.nodes for name in node.input}
    source = save(
        path,
        grown.nodes,
        {"x": (TensorProto.FLOAT, list(shape))},
        {name: (TensorProto.FLOAT, list(size)) for name, size in outputs.items()},
        {name: array for name, array in grown.weights.items() if name in used},
    )
    return source, {"x": grown.random.normal(size=(3, *shape[1:])).astype(np.float32)}
