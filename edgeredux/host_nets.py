"""Small ONNX networks made at random, of the layers that real ones have: what the host's cost model is fitted to.

No published network is among them. Weights are normal random numbers; the same seed makes the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from edgeredux.seams import Feed


@dataclass
class Net:
    """A graph under construction: nodes, weights, and the input with its shape."""

    random: np.random.Generator
    shape: tuple[int, ...]
    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)

    def add(self, kind: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> str:
        """A node; the name of its first output."""
        from onnx import helper

        names = [f"t{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0]

    def constant(self, value: np.ndarray[Any, Any]) -> str:
        """A stored tensor; its name."""
        from onnx import numpy_helper

        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def normal(self, *shape: int) -> str:
        """A stored tensor of small random numbers."""
        return self.constant(self.random.normal(0, 0.02, shape).astype(np.float32))

    def pick(self, *values: int) -> int:
        """One of the values."""
        return int(self.random.choice(values))

    def save(self, path: Path, last: str) -> Feed:
        """Write the file; an input for it."""
        import onnx
        from onnx import TensorProto, helper

        given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)]
        made = [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)]
        graph = helper.make_graph(self.nodes, "generated", given, made, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(onnx.shape_inference.infer_shapes(model), str(path))
        return {"x": self.random.normal(0, 1, self.shape).astype(np.float32)}


def linear(net: Net, x: str, inputs: int, outputs: int, *, int8: bool = False) -> str:
    """x W + b, in float or by dynamic quantisation to 8 bits as pass int8_dynamic writes it."""
    if not int8:
        product = net.add("MatMul", [x, net.normal(inputs, outputs)])
        return net.add("Add", [product, net.normal(outputs)])
    net.add("DynamicQuantizeLinear", [x], 3)
    quantised, scale, zero = (f"t{len(net.nodes) - 1}_{i}" for i in range(3))
    weight = net.constant(net.random.integers(-127, 128, (inputs, outputs)).astype(np.int8))
    product = net.add("MatMulInteger", [quantised, weight, zero])
    scales = net.add("Mul", [scale, net.constant(np.full(outputs, 0.01, dtype=np.float32))])
    product = net.add("Mul", [net.add("Cast", [product], to=1), scales])
    return net.add("Add", [product, net.normal(outputs)])


def layers(net: Net, *, int8: bool = False) -> str:
    """Three to sixteen linear layers with GELU between."""
    width = net.shape[-1]
    x = "x"
    for _ in range(net.pick(3, 4, 8, 16)):
        wider = net.pick(192, 256, 512, 640, 1024, 1536, 2048)
        x = net.add("Gelu", [linear(net, x, width, wider, int8=int8)])
        width = wider
    return x


def blocks(net: Net, *, int8: bool = False) -> str:
    """Two to six transformer blocks."""
    _, tokens, width = net.shape
    size = net.pick(32, 64)
    heads = width // size
    inner = width * net.pick(2, 3, 4)
    shape = net.constant(np.array([1, tokens, heads, size], dtype=np.int64))
    back = net.constant(np.array([1, tokens, width], dtype=np.int64))
    share = net.constant(np.array(size**-0.5, dtype=np.float32))
    add = ("Add", "Sum")[net.pick(0, 1)]  # with a Sum ONNX Runtime does not fuse addition and normalisation
    x = "x"
    for _ in range(net.pick(2, 3, 6)):
        q, k, v = (net.add("Reshape", [linear(net, x, width, width, int8=int8), shape]) for _ in range(3))
        q = net.add("Transpose", [q], perm=[0, 2, 1, 3])
        k = net.add("Transpose", [k], perm=[0, 2, 3, 1])
        v = net.add("Transpose", [v], perm=[0, 2, 1, 3])
        scores = net.add("Softmax", [net.add("Mul", [net.add("MatMul", [q, k]), share])], axis=-1)
        mixed = net.add("Transpose", [net.add("MatMul", [scores, v])], perm=[0, 2, 1, 3])
        mixed = linear(net, net.add("Reshape", [mixed, back]), width, width, int8=int8)
        x = _norm(net, net.add(add, [x, mixed]), width)
        fed = net.add("Gelu", [linear(net, x, width, inner, int8=int8)])
        x = _norm(net, net.add(add, [x, linear(net, fed, inner, width, int8=int8)]), width)
    return x


def tiles(net: Net, *, int8: bool = False) -> str:
    """Linear layers cut into bands, each a smaller product of gathered inputs, as pass tile lowers them."""
    _, tokens, width = net.shape
    x = "x"
    for _ in range(net.pick(4, 6)):
        bands, part = net.pick(2, 4), 16
        outputs, kept = net.pick(384, 512, 1024), width // part // 2
        view = net.add("Reshape", [x, net.constant(np.array([tokens, width // part, part], dtype=np.int64))])
        found = []
        for _ in range(bands):
            index = np.sort(net.random.choice(width // part, kept, replace=False)).astype(np.int64)
            taken = net.add("Gather", [view, net.constant(index)], axis=1)
            taken = net.add("Reshape", [taken, net.constant(np.array([1, tokens, kept * part], dtype=np.int64))])
            found.append(linear(net, taken, kept * part, outputs // bands, int8=int8))
        x, width = net.add("Gelu", [net.add("Concat", found, axis=-1)]), outputs
    return x


def maps(net: Net, *, int8: bool = False) -> str:
    """Convolutions of a residual network, strides, sums; sometimes depthwise ones, sometimes an image first."""
    channels, depthwise, x = net.shape[1], net.pick(0, 1), "x"
    if channels == 3:
        wide = net.pick(32, 64)
        x = _convolution(net, x, 3, wide, net.pick(3, 7), stride=2)
        x, channels = net.add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), wide
    for index in range(net.pick(3, 4, 5)):
        if depthwise:
            wide = channels * net.pick(2, 4, 6)
            inside = _convolution(net, x, channels, wide, 1)
            inside = _convolution(net, inside, wide, wide, net.pick(3, 5), groups=wide)
            x = net.add("Add", [x, _convolution(net, inside, wide, channels, 1, relu=False)])
        elif index == 1:
            x, channels = _convolution(net, x, channels, 2 * channels, 3, stride=2), 2 * channels
        elif index % 2:
            inside = _convolution(net, x, channels, channels // 2, 1)
            inside = _convolution(net, inside, channels // 2, channels // 2, 3)
            inside = _convolution(net, inside, channels // 2, channels, 1, relu=False)
            x = net.add("Relu", [net.add("Add", [x, inside])])
        else:
            inside = _convolution(net, _convolution(net, x, channels, channels, 3), channels, channels, 3, relu=False)
            x = net.add("Relu", [net.add("Add", [x, inside])])
    return net.add("GlobalAveragePool", [x])


def chain(net: Net, *, int8: bool = False) -> str:
    """Many operators with little to do each."""
    x = "x"
    for _ in range(net.pick(10, 30, 60)):
        kind = net.pick(0, 1, 2, 3)
        if kind == 0:
            x = net.add("Add", [x, net.normal(net.shape[-1])])
        elif kind == 1:
            x = net.add("Sigmoid", [x])
        elif kind == 2:
            x = net.add("Transpose", [net.add("Transpose", [x], perm=[0, 2, 1])], perm=[0, 2, 1])
            x = net.add("Mul", [x, net.normal(1)])
        else:
            x = net.add("Softmax", [x], axis=-1)
    return x


def _norm(net: Net, x: str, width: int) -> str:
    return net.add(
        "LayerNormalization", [x, net.constant(np.ones(width, dtype=np.float32)), net.normal(width)], axis=-1
    )


def _convolution(
    net: Net, x: str, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, relu: bool = True
) -> str:
    weight = net.normal(outputs, inputs // groups, kernel, kernel)
    pads = [kernel // 2] * 4
    made = net.add("Conv", [x, weight, net.normal(outputs)], strides=[stride] * 2, pads=pads, group=groups)
    return net.add("Relu", [made]) if relu else made


_TOKENS = (1, 1, 2, 4, 8, 16, 32, 48, 64, 128)
_WIDTHS = (192, 256, 320, 512, 768)
_IMAGES = (
    (3, 96),
    (3, 160),
    (3, 224),
    (16, 64),
    (32, 56),
    (64, 56),
    (64, 28),
    (128, 28),
    (128, 14),
    (256, 14),
    (512, 7),
    (512, 14),
)
_MAKERS: tuple[tuple[str, Callable[..., str], bool], ...] = (
    ("layers", layers, False),
    ("layers int8", layers, True),
    ("blocks", blocks, False),
    ("blocks int8", blocks, True),
    ("tiles", tiles, False),
    ("tiles int8", tiles, True),
    ("maps", maps, False),
    ("chain", chain, False),
)


def make(folder: Path, count: int, seed: int = 0) -> dict[Path, Feed]:
    """`count` networks in the folder, kinds in turn, and an input for each."""
    found = {}
    for index in range(count):
        name, maker, int8 = _MAKERS[index % len(_MAKERS)]
        random = np.random.default_rng([seed, index])
        shape: tuple[int, ...] = (1, int(random.choice(_TOKENS)), int(random.choice(_WIDTHS)))
        if maker is maps:
            channels, size = _IMAGES[int(random.integers(len(_IMAGES)))]
            shape = (1, channels, size, size)
        net = Net(random, shape)
        last = maker(net, int8=int8)
        path = folder / f"{index:03d} {name}.onnx"
        found[path] = net.save(path, last)
    return found
