"""Two ONNX files compared operator for operator: types, attributes, wiring, shapes and the bytes of all constants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common


def described(path: Path) -> tuple[list[Any], list[Any]]:
    """Every node with what it reads (constants by content), and every constant; names of nodes and values do not count.

    Shapes are inferred anew: exporters leave some unsaid that a pass says.
    """
    model = ir.load(path)
    common.ShapeInferencePass()(model)
    graph = model.graph
    places: dict[int, Any] = {id(value): ("input", value.name, str(value.shape)) for value in graph.inputs}

    def reference(value: ir.Value | None) -> Any:
        if value is None:
            return None
        return constant(value) if value.is_initializer() else places[id(value)]

    def constant(value: ir.Value) -> Any:
        assert value.const_value is not None
        array = value.const_value.numpy()
        return (str(array.dtype), array.shape, array.tobytes())

    nodes = []
    for index, node in enumerate(graph):
        nodes.append(
            {
                "operator": (node.domain, node.op_type),
                "inputs": [reference(value) for value in node.inputs],
                "attributes": {name: str(attribute.value) for name, attribute in node.attributes.items()},
                "shapes": [str(value.shape) for value in node.outputs],
            }
        )
        places.update({id(value): (index, place) for place, value in enumerate(node.outputs)})
    nodes.append([(value.name, str(value.shape), reference(value)) for value in graph.outputs])
    return nodes, sorted(constant(value) for value in graph.initializers.values())


def assert_same_graph(one: Path, two: Path) -> None:
    """Fail where the files are not the same, naming the first node that differs."""
    (nodes, constants), (others, other_constants) = described(one), described(two)
    assert len(nodes) == len(others)
    for index, (node, other) in enumerate(zip(nodes, others, strict=True)):
        assert node == other, f"node {index}"
    assert constants == other_constants
