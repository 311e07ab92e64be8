"""2:4 weights checked after everything else, and marked for TensorRT."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.passes.onnx import files, unfit
from edgeredux.passes.onnx.two_four_weights import Weight, weights
from edgeredux.seams import PassContext, Tolerance

KEY = "edgeredux.two_four"  # of the metadata of the model and of each marked node
_NEARLY = 0.95  # a weight with so many whole groups, most of which keep just two, was 2:4, and something broke it


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TwoFour:
    """Every weight of which at most two of four neighbouring inputs are not zero is marked; the graph stays. Exact.

    Given   y = MatMul(x, w)                                           w keeps 2 of every 4 inputs of each output
    Result  y = MatMul(x, w)       metadata of the node: {"axis": 0, "groups": 4608}; of the model: the marked layers

    The last pass of a list for an NVIDIA GPU: it shows whether the passes before left the pattern whole. A weight is
    read through its quantisation (QDQ, integer operators, blocks). Declines where none is 2:4, and where one that was
    (95 % of its groups are) no longer is: that would be sold as sparse and run dense. `require`: names of nodes that
    must be 2:4. TensorRT itself finds 2:4 weights when it is asked to (trtexec --sparsity=enable) and takes its sparse
    kernels where they are faster. It has been seen not to take them behind Q/DQ pairs (TensorRT issues #4065, #4694),
    so `warnings` name each layer with that risk, and each that TensorRT cannot read. In PyTorch the weights go through
    edgeredux.sparsity.semi_structured.
    """

    require: tuple[str, ...] = ()
    format: Format = dataclasses.field(default="onnx", init=False)
    tolerance: Tolerance = dataclasses.field(
        default=Tolerance("the same graph with notes in it", atol=0.0, rtol=0.0), init=False
    )

    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The marked file; details `layers` (axis, groups), `broken` and `dense` (groups, whole), `warnings`.

        Raises ArtifactError on an unreadable file.
        """
        model = files.read(source)
        common.NameFixPass()(model)
        found = [weight for graph in files.graphs(model) for weight in weights(graph)]
        counted = {weight.name: _count(weight) for weight in found}
        whole = [weight for weight in found if 0 < counted[weight.name][0] == counted[weight.name][1]]
        broken = {
            name: {"groups": groups, "whole": kept}
            for name, (groups, kept, pairs) in counted.items()
            if groups and _NEARLY <= kept / groups < 1 and 2 * pairs >= groups
        }
        marked = {
            weight.name: {"axis": weight.axis, "groups": counted[weight.name][0], "zeros": weight.zeros}
            for weight in whole
        }
        others = {
            name: {"groups": groups, "whole": kept}
            for name, (groups, kept, _) in counted.items()
            if name not in marked and name not in broken
        }
        warnings = [f"{weight.name}: {risk}" for weight in whole for risk in weight.risks]
        details: dict[str, Any] = {"layers": marked, "broken": broken, "dense": others, "warnings": warnings}
        if (problem := self._problem(model, marked, broken, counted)) is not None:
            return Change("two_four", False, f"declined: {problem}", details)
        model.metadata_props[KEY] = json.dumps(marked, sort_keys=True)
        for weight in whole:
            weight.node.metadata_props[KEY] = json.dumps(marked[weight.name], sort_keys=True)
        files.write(model, out)
        why = f"{len(marked)} of {len(found)} weights are 2:4, {sum(m['groups'] for m in marked.values())} groups whole"
        why += f"; {len(warnings)} warnings, first: {warnings[0]}" if warnings else ""
        return Change("two_four", True, why, details)

    def _problem(
        self, model: ir.Model, marked: dict[str, Any], broken: dict[str, Any], counted: dict[str, tuple[int, int, int]]
    ) -> str | None:
        if (unknown := unfit.unknown_node(model, self.require, "require")) is not None:
            return unknown
        if broken:
            name, said = next(iter(broken.items()))
            gone = said["groups"] - said["whole"]
            return f"{len(broken)} weights are 2:4 no longer; {name}: {gone} of {said['groups']} groups keep 3 or 4"
        absent = [name for name in self.require if name not in marked]
        if absent:
            if absent[0] not in counted:
                return f"{absent[0]} is required to be 2:4, and it has no constant weight that can be read"
            groups, kept, _ = counted[absent[0]]
            if not groups:
                return f"{absent[0]} is required to be 2:4, and its inputs are no multiple of four"
            return f"{absent[0]} is required to be 2:4: {kept} of {groups} groups are"
        if not marked:
            if not counted:
                return "no operator has a constant weight"
            grouped = [(name, groups, kept) for name, (groups, kept, _) in counted.items() if groups]
            if not grouped:
                return "no weight has a multiple of four inputs"
            name, groups, kept = max(grouped, key=lambda item: item[2] / item[1])
            return f"no weight is 2:4; the nearest, {name}, has {kept} of {groups} groups"
        return None


def _count(weight: Weight) -> tuple[int, int, int]:
    """Groups of four neighbouring inputs, how many keep at most two, how many just two; zeros where none can be."""
    inputs = weight.kept.shape[weight.axis]
    if inputs % 4 or not weight.kept.size:
        return 0, 0, 0
    groups = np.moveaxis(weight.kept, weight.axis, -1).reshape(-1, 4).sum(axis=1)
    return len(groups), int((groups <= 2).sum()), int((groups == 2).sum())
