"""Constants that several operators read: one each while they are cut, equal ones together again afterwards."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx_ir as ir


class Ownership:
    """Gives every use of an initializer a value of its own; the tensor stays one, nothing is copied.

    Initializers that an output or a subgraph reads, or that a caller may replace, stay as they are for those.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._before = set(graph.initializers)
        self._origin: dict[str, str] = {}
        place = {id(node): index for index, node in enumerate(graph)}
        for value in list(graph.initializers.values()):
            if value.is_graph_input():
                continue
            uses = [use for use in value.uses() if id(use.node) in place]
            uses.sort(key=lambda use: (place[id(use.node)], use.idx))
            spare = len(uses) == len(list(value.uses())) and not value.is_graph_output()
            for number, use in enumerate(uses[1:] if spare else uses):
                name = f"{value.name}@{number}"
                own = ir.val(name, const_value=value.const_value, dtype=value.dtype, shape=value.shape)
                graph.register_initializer(own)
                self._origin[name] = str(value.name)
                use.node.replace_input_with(use.idx, own)

    def unite(self) -> None:
        """Let what was made here or since be one with an equal initializer, and give it a proper name."""
        groups: dict[tuple[object, ...], list[ir.Value]] = {}
        for value in self.graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and not value.is_graph_input():
                groups.setdefault((tensor.dtype, *tensor.shape), []).append(value)
        for values in groups.values():
            if all(value.name in self._before for value in values):
                continue
            first: dict[object, ir.Value] = {}
            for value in values:
                known = first.setdefault(_content(value), value)
                if known is not value and value.name not in self._before:
                    ir.convenience.replace_all_uses_with(value, known)
                    del self.graph.initializers[str(value.name)]
        for name, origin in self._origin.items():
            if name in self.graph.initializers:
                count = 0
                while (free := f"{origin}_{count}") in self.graph.initializers:
                    count += 1
                self.graph.initializers[name].name = free


def _content(value: ir.Value) -> str:
    assert value.const_value is not None
    array = np.ascontiguousarray(value.const_value.numpy()).reshape(-1)
    return hashlib.sha256(array.view(np.uint8).data).hexdigest()
