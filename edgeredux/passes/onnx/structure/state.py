"""The facts of one graph, forward and backward, and the largest set of positions that can go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx import files
from edgeredux.passes.onnx.structure.cuts import Causes, Cut
from edgeredux.passes.onnx.structure.facts import Array, Dims, Flags, Known, along
from edgeredux.passes.onnx.structure.rule import Rule, everything, nothing
from edgeredux.passes.onnx.weights import initializer

_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16}


# An input and the output that becomes it at the next call.
Carried: TypeAlias = "tuple[ir.Value, ir.Value]"


class State:
    """What holds of every value of a graph.

    Known: the same in every run (forward). Needed: read by something that reaches an output (backward). A position of
    an axis is dead when each of its elements is known or not needed. The cuts are the greatest set of dead positions
    on which all operators agree, so every element that stays is computed from the same terms as before.

    `carried`: pairs of an input and the output that is handed in there at the next call, as a key-value cache is. What
    such an input does not need, its output need not give; both may lose the same positions.
    """

    def __init__(self, graph: ir.Graph, rules: Mapping[str, Rule], carried: Sequence[Carried] = ()) -> None:
        self.graph, self.carried = graph, carried
        self.nodes = list(graph)
        self._rules, self._unknown = rules, Rule()
        self._dims: dict[int, Dims | None] = {}
        self._known: dict[int, Known] = {}
        self._needed: dict[int, Flags] = {}
        self._cuts: dict[tuple[int, int], Cut] = {}
        self._values: list[ir.Value] = []
        self.causes: list[str] = []
        self._cause_numbers: dict[str, int] = {}
        self.changed = False
        self.written: dict[tuple[int, tuple[tuple[int, int], ...]], ir.Value] = {}  # shapes made by a rewrite
        made = [out for node in self.nodes for out in node.outputs]
        for value in [*graph.inputs, *graph.initializers.values(), *made]:
            if id(value) not in self._dims:
                self._dims[id(value)] = _dims(value)
                self._values.append(value)
        self._forward()
        self._backward()

    # What holds of a value.

    def rule(self, node: ir.Node) -> Rule:
        """The rule of a node's operator; nodes with values of unknown rank, subgraphs or functions have none."""
        values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name != ""]
        if node.domain != "" or any(self._dims.get(id(value)) is None for value in values):
            return self._unknown
        return self._rules.get(node.op_type, self._unknown)

    def dims(self, value: ir.Value) -> Dims:
        """The sizes of a value's axes. Only for values of known rank."""
        found = self._dims[id(value)]
        assert found is not None
        return found

    def symbols(self, value: ir.Value) -> tuple[int | str | None, ...]:
        """The sizes with names of dynamic ones."""
        assert value.shape is not None
        return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)

    def known(self, value: ir.Value) -> Known:
        """What is the same in every run."""
        found = self._known.get(id(value))
        if found is None:
            array = self.array(value)
            found = Known.nothing(len(self.dims(value))) if array is None else Known.constant(array)
        return found

    def array(self, value: ir.Value | None) -> Array | None:
        """The whole content of an initializer that no caller can replace."""
        if value is None or not value.is_initializer() or value.is_graph_input():
            return None
        return files.constant(value)

    def needed(self, value: ir.Value) -> Flags:
        """Which elements anything reads that reaches an output."""
        return self._needed.get(id(value), nothing(len(self.dims(value))))

    def wanted(self, value: ir.Value) -> Flags:
        """Which elements are needed and have to be computed."""
        return self.needed(value) & ~self.known(value).mask

    # Cuts.

    def cut(self, value: ir.Value | None, axis: int) -> Cut | None:
        """The cut of an axis; None where the axis has size 1 or a dynamic size, or there is no value."""
        return None if value is None else self._cuts.get((id(value), axis))

    def is_cut(self, value: ir.Value | None) -> bool:
        """Whether any position of a value goes."""
        if value is None or self._dims.get(id(value)) is None:
            return False
        cuts = [self.cut(value, axis) for axis in range(len(self.dims(value)))]
        return any(cut is not None and bool(cut.gone.any()) for cut in cuts)

    def gone(self, value: ir.Value, axis: int) -> Flags:
        """Which positions of an axis of static size go."""
        cut, size = self.cut(value, axis), self.dims(value)[axis]
        assert size is not None
        return np.zeros(size, bool) if cut is None else cut.gone

    def cause(self, text: str) -> int:
        """The number of a reason."""
        if text not in self._cause_numbers:
            self._cause_numbers[text] = len(self.causes)
            self.causes.append(text)
        return self._cause_numbers[text]

    def only(self, value: ir.Value, axis: int, allowed: Flags, cause: str | Causes) -> None:
        """Let no position outside of `allowed` go."""
        cut = self.cut(value, axis)
        if cut is not None and not allowed.all():
            number = self.cause(cause) if isinstance(cause, str) else cause
            self.changed |= cut.only(allowed, number)

    def pin(self, value: ir.Value | None, axes: Sequence[int] | None, cause: str) -> None:
        """Let nothing of these axes go (None: of all axes)."""
        if value is None or self._dims.get(id(value)) is None:
            return
        for axis in range(len(self.dims(value))) if axes is None else axes:
            cut = self.cut(value, axis)
            if cut is not None:
                self.changed |= cut.only(np.zeros_like(cut.gone), self.cause(cause))

    def pin_all(self, node: ir.Node, cause: str) -> None:
        """Let nothing of a node's inputs and outputs go."""
        for value in (*node.inputs, *node.outputs):
            self.pin(value, None, cause)

    def tie(self, one: ir.Value | None, axis: int, two: ir.Value | None, other: int, cause: str) -> None:
        """Two axes lose the same positions; none where the other one cannot lose any."""
        if one is None or two is None:
            return
        first, second = self.cut(one, axis), self.cut(two, other)
        if first is None or second is None:
            if first is not None or second is not None:
                self.pin(one, [axis], cause)
                self.pin(two, [other], cause)
            return
        self.changed |= first.only(second.gone, second.cause)
        self.changed |= second.only(first.gone, first.cause)

    # Work.

    def _forward(self) -> None:
        for node in self.nodes:
            inputs = [value for value in node.inputs if value is not None]
            rule = self.rule(node)
            if rule is self._unknown or not any(self.known(value).somewhere for value in inputs):
                continue
            for out, found in zip(node.outputs, rule.known(node, self), strict=True):
                if found is not None and out.dtype in _FLOATS:
                    finite = found.mask & np.isfinite(found.values)  # ml_dtypes have it too
                    self._known[id(out)] = Known(finite, found.values).settled(self.dims(out))

    def _backward(self) -> None:
        inside = {id(node) for node in self.nodes}
        handed_on = {id(out) for _, out in self.carried}
        for value in self._values:
            outside = any(id(use.node) not in inside for use in value.uses())
            seen = (value.is_graph_output() and id(value) not in handed_on) or outside
            if seen and self._dims[id(value)] is not None:
                self._needed[id(value)] = everything(len(self.dims(value)))
        grown = True
        while grown:
            for node in reversed(self.nodes):
                self._ask(node)
            grown = False
            for given, out in self.carried:
                more = self.needed(given) & ~self.needed(out)
                if more.any():
                    self._needed[id(out)] = self.needed(out) | self.needed(given)
                    grown = True

    def _ask(self, node: ir.Node) -> None:
        rule = self.rule(node)
        reached = any(self._dims.get(id(out)) is None or bool(self.needed(out).any()) for out in node.outputs)
        asked = rule.needed(node, self) if reached else []
        for read, found in zip(node.inputs, asked, strict=False):
            if read is not None and self._dims.get(id(read)) is not None:
                flags = everything(len(self.dims(read))) if found is None else found
                self._needed[id(read)] = self.needed(read) | flags

    def dead(self, value: ir.Value, axis: int) -> Flags:
        """Which positions of an axis of static size are known or not needed, all elements of them."""
        size = self.dims(value)[axis]
        assert size is not None
        return along(self.known(value).mask | ~self.needed(value), axis, size)

    def solve(self) -> None:
        """Find the cuts."""
        inside = {id(node) for node in self.nodes}
        both = {id(value) for pair in self.carried for value in pair}
        for value in self._values:
            if self._dims[id(value)] is None:
                continue
            fixed = (value.is_graph_input() or value.is_graph_output()) and id(value) not in both
            what = "an input or output of the graph" if fixed else "in use"
            used = self.cause(f"{value.name} is {what}")
            for axis, size in enumerate(self.dims(value)):
                if size is not None and size > 1:
                    self._cuts[id(value), axis] = Cut(self.dead(value, axis), used)
            if fixed:
                self.pin(value, None, f"{value.name} is an input or output of the graph")
            elif any(id(use.node) not in inside for use in value.uses()):
                self.pin(value, None, f"a subgraph reads {value.name}")
        self._settle()
        while True:
            full = [(key, cut) for key, cut in self._cuts.items() if cut.gone.all()]
            if not full:
                return
            # No runtime takes a matrix without columns: the first one stays, and all that goes with it.
            for _, cut in full[:1]:
                keep = np.ones_like(cut.gone)
                keep[0] = False
                cut.only(keep, self.cause("one position has to stay"))
            self._settle()

    def _settle(self) -> None:
        self.changed = True
        while self.changed:
            self.changed = False
            for node in self.nodes:
                self.rule(node).agree(node, self)
            for given, out in self.carried:
                for axis in range(len(self.dims(given))):
                    self.tie(given, axis, out, axis, f"{given.name} has an axis of dynamic size there")
            for node in reversed(self.nodes):
                self.rule(node).agree(node, self)

    # New values of a rewrite.

    def constant(self, stem: str, array: Array, like: ir.Value | None = None) -> ir.Value:
        """A new initializer that is not cut; of the type of `like` where given."""
        if like is not None and like.dtype is not None:
            array = array.astype(like.dtype.numpy())
        value = initializer(self.graph, stem, array)
        self._dims[id(value)] = tuple(array.shape)
        self._values.append(value)
        return value

    def follow(self, old: ir.Value, new: ir.Value) -> None:
        """A value made in a rewrite that stands for `old` from here on: same facts, same cuts."""
        self._dims[id(new)] = self._dims[id(old)]
        self._known[id(new)] = self.known(old)
        self._needed[id(new)] = self.needed(old)
        self._values.append(new)
        for axis in range(len(self.dims(old))):
            cut = self.cut(old, axis)
            if cut is not None:
                self._cuts[id(new), axis] = cut

    def cuts(self) -> list[tuple[ir.Value, int, Cut]]:
        """Every axis that loses positions."""
        found = []
        for value in self._values:
            if self._dims[id(value)] is not None:
                for axis in range(len(self.dims(value))):
                    cut = self.cut(value, axis)
                    if cut is not None and cut.gone.any():
                        found.append((value, axis, cut))
        return found


def _dims(value: ir.Value) -> Dims | None:
    if value.is_initializer() and value.const_value is not None:
        return tuple(value.const_value.numpy().shape)
    if value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else None for dim in value.shape)
