"""What the passes int4_weights and int8_weights share: all but the bits and what their options may be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import onnx_ir as ir
import onnx_ir.passes.common as common
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.errors import InternalError
from edgeredux.passes.onnx import files, unfit
from edgeredux.passes.onnx.block_gptq import gptq, moments
from edgeredux.passes.onnx.block_rounding import hqq, rtn
from edgeredux.passes.onnx.block_weights import DOMAIN, BlockGraph, Width
from edgeredux.passes.onnx.blocks import Array, Bits, Blocks
from edgeredux.seams import PassContext

Method: TypeAlias = Literal["rtn", "hqq", "gptq"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class BlockStep:
    """The options, as int4_weights explains them, and the work."""

    name: ClassVar[str]
    bits: ClassVar[Bits]

    method: Method = "rtn"
    block: Literal[16, 32, 64, 128, 256] = 32
    embeddings: Width = "same"
    head: Width = "same"
    compute: Literal["float", "int8"] = "float"
    least: int = Field(default=1024, ge=0)
    exclude: tuple[str, ...] = ()
    format: Format = dataclasses.field(default="onnx", init=False)

    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The rewritten graph; details `layers` (bits, method), `tables` (bits), `tied`, `left` (why), `zeros`.

        Raises ArtifactError on an unreadable file, DataError where gptq has no fitting calibration inputs.
        """
        model = files.read(source)
        common.NameFixPass()(model)
        if (problem := unfit.unknown_node(model, self.exclude)) is not None:
            return self._declined(problem)
        seen: dict[str, Array] = {}
        if self.method == "gptq":
            layers = self._on(model, model.graph, seen).linears()
            widths = {x: found.weight.shape[1] for found in layers if (x := found.node.inputs[0]) is not None}
            seen = moments(model, widths, context.calibration, context.scratch)
        parts = [self._on(model, graph, seen) for graph in list(files.graphs(model))]
        for part in parts:
            part.rewrite()
        layers_made = {name: how for part in parts for name, how in part.layers.items()}
        tables = {name: bits for part in parts for name, bits in part.tables.items()}
        left = {name: why for part in parts for name, why in part.left.items()}
        zeros = {key: sum(part.zeros[key] for part in parts) for key in ("weights", "before", "after", "lost")}
        lost = zeros.pop("lost")
        details: dict[str, Any] = {"method": self.method, "bits": int(self.bits), "block": self.block}
        details |= {"layers": layers_made, "tables": tables, "left": left, "zeros": zeros}
        details["tied"] = [name for part in parts for name in part.tied]
        if not layers_made and not tables:
            return self._declined("no MatMul, Gemm or embedding table has constant float weights that fit", left=left)
        if lost and self.method == "hqq":
            why = f"hqq's zero points cannot hold zeros: {lost} of {zeros['before']} would become something else"
            return self._declined(f"{why}; method rtn and gptq keep them")
        if lost:
            raise InternalError(f"{self.name}: {lost} of {zeros['before']} zeros did not stay zeros")
        common.RemoveUnusedNodesPass()(model)
        model.opset_imports.setdefault(DOMAIN, 1)
        files.write(model, out)
        why = f"{len(layers_made)} layers and {len(tables)} tables to int{self.bits} in blocks of {self.block}"
        tied = f", {len(details['tied'])} stored once for table and output layer" if details["tied"] else ""
        return Change(self.name, True, f"{why}{tied}; runs on ONNX Runtime only", details)

    def _declined(self, why: str, **details: Any) -> Change:
        return Change(self.name, False, f"declined: {why}", details)

    def _on(self, model: ir.Model, graph: ir.Graph, seen: dict[str, Array]) -> BlockGraph:
        def quantise(node: ir.Node, weight: Array, bits: Bits) -> Blocks:
            entry = node.inputs[0]
            if self.method == "hqq":
                return hqq(weight, bits, self.block)
            if self.method == "gptq" and entry is not None and entry.name in seen:
                return gptq(weight, seen[str(entry.name)], bits, self.block)
            return rtn(weight, bits, self.block)  # gptq: a layer inside of an If or Loop, whose inputs nobody sees

        return BlockGraph(
            graph,
            self.bits,
            self.block,
            quantise,
            level=4 if self.compute == "int8" else 0,
            embeddings=self.embeddings,
            head=self.head,
            least=self.least,
            exclude=frozenset(self.exclude),
            is_main=graph is model.graph,
        )
