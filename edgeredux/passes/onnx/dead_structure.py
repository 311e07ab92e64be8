"""Structure that pruning emptied, taken out of the graph: zeros become smaller matrices and fewer operators."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.errors import one_line
from edgeredux.passes.onnx import files
from edgeredux.passes.onnx.structure.apply import apply_cuts, kept_dead
from edgeredux.passes.onnx.structure.branches import cut_branches
from edgeredux.passes.onnx.structure.carrying import Narrowed, carried, narrowed
from edgeredux.passes.onnx.structure.ownership import Ownership
from edgeredux.passes.onnx.structure.rules import RULES
from edgeredux.passes.onnx.structure.state import State
from edgeredux.seams import PassContext, Tolerance

_SHOWN = 3


class CutStructure(ir.passes.InPlacePass):
    """Remove channels, heads and branches that are the same for every input, or that no output depends on.

    Given   h = Gelu(MatMul(x, w) + b); y = MatMul(h, v) + c     w[:, j] = 0, or v[j, :] = 0
    Result  the same without channel j of w, b and v; where w[:, j] = 0, c grows by Gelu(b[j]) * v[j, :]
    """

    def __init__(self, *, cache: bool) -> None:
        super().__init__()
        self.cache = cache
        self.interface: Narrowed = {}
        self.cut: dict[str, int] = {}
        self.branches: list[str] = []
        self.kept: dict[str, int] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        common.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=0)(model)
        owners = Ownership(model.graph)
        modified = False
        while True:
            state = State(model.graph, RULES, carried(model.graph) if self.cache else ())
            branches = cut_branches(state)
            if branches:
                self.branches += branches
                common.RemoveUnusedNodesPass()(model)
                modified = True
                continue
            state.solve()
            self.kept = kept_dead(state)
            if not state.cuts():
                break
            self.interface = narrowed(state, self.interface)
            for name, count in apply_cuts(state).items():
                self.cut[name] = self.cut.get(name, 0) + count
            common.RemoveUnusedNodesPass()(model)
            modified = True
        if modified:
            owners.unite()
        return ir.passes.PassResult(model, modified)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DeadStructure:
    """FFN neurons, attention heads, convolution channels and branches that are constant or unread leave. Exact.

    A channel is dead where its weights are zero (its constant goes into the next bias) or all its readers' are. It
    leaves with everything coupled to it. What stays is computed from the same terms; only the order of additions may
    differ. Assumes that activations are finite: 0 times infinity counts as 0. An operator that is not understood keeps
    what reaches it, and the reason is in the change's line. Inputs and outputs keep their shapes; with `cache`, those
    of a key-value cache (past_key_values.N.key and present.N.key) lose the heads that no step reads.
    """

    cache: bool = False
    format: Format = dataclasses.field(default="onnx", init=False)
    tolerance: Tolerance = dataclasses.field(
        default=Tolerance("sums lose terms that are zero, in another order", atol=1e-4, rtol=1e-4), init=False
    )

    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The smaller graph; details `cut`: channels by operator, `branches`, `kept`: dead ones that stay, by reason;
        `interface`: by input or output and axis, the positions that stay, where the cache lost heads.

        Raises ArtifactError on an unreadable file.
        """
        model = files.read(source)
        common.NameFixPass()(model)
        common.ShapeInferencePass()(model)
        step = CutStructure(cache=self.cache)
        modified = step(model).modified
        stays = _reasons(step.kept)
        if not modified:
            why = f"no channel, head or branch can go{stays}" if stays else "no channel, head or branch is dead"
            return Change("dead_structure", False, f"declined: {why}", {"kept": step.kept})
        files.write(model, out)
        channels, branches = sum(step.cut.values()), len(step.branches)
        said = [f"{channels} channels of {len(step.cut)} operators"] if step.cut else []
        said += [f"{branches} constant branches"] if branches else []
        why = f"{' and '.join(said) or 'constants that nobody reads'} removed{stays}"
        details: dict[str, Any] = {"cut": dict(sorted(step.cut.items())), "branches": step.branches, "kept": step.kept}
        if step.interface:
            details["interface"] = step.interface
            why += f"; {len(step.interface)} inputs and outputs of the cache have fewer heads"
        return Change("dead_structure", True, why, details)


def _reasons(kept: dict[str, int]) -> str:
    """The most common reasons why dead channels stay."""
    said = [f"{count} ({one_line(reason, 120)})" for reason, count in list(kept.items())[:_SHOWN]]
    more = sum(list(kept.values())[_SHOWN:])
    return f"; dead but kept: {', '.join(said)}{f' and {more} more' if more else ''}" if said else ""
