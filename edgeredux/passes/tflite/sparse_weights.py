"""Zeros of a TFLite file that are stored, and worked off, as nothing."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.passes.tflite import files, packing, sparse_choice, sparse_cost, sparse_graph, sparse_store
from edgeredux.resolvers import agree_everywhere
from edgeredux.seams import PassContext, Tolerance

NAME = "tflite_sparse_weights"
# Sums leave out terms that are zero and are added in another order; integer kernels round halves another way.
_FLOAT = Tolerance("zeros left out of sums in float32, share of the largest output", atol=1e-4)
_INTEGER = Tolerance("zeros left out of exact integer sums; kernels round halves differently", cosine=0.999)
_TOLERANCE = Tolerance("zeros left out; elementwise bounds are checked under each resolver", cosine=0.999)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TfliteSparseWeights:
    """Weights with zeros stored sparse: worked off by LiteRT's sparse kernels, or expanded at load. Right everywhere.

    Given   y = FULLY_CONNECTED(x, w, b)
    Result  y = FULLY_CONNECTED(x, w sparse, RESHAPE(b))  where the sparse kernel is expected to gain `minimum_gain`
            y = FULLY_CONNECTED(x, DENSIFY(w sparse), b)  where only bytes are won (`expand`), convolutions likewise

    float32 in rows or in blocks of 1 x 4, int8 in blocks of 1 x 16, whichever is faster by measured rates
    (sparse_cost.py); `resolver`, the target's, says which dense kernels they have to beat, with the recipe's threads. A
    default delegate reads a sparse weight as a dense one; it leaves the operator alone when its bias is computed at run
    time, and that is what the RESHAPE, to the shape it has, is for. An operator that stands without this guard in the
    given file gets it. The file loses all buffers that nothing reads.

    Before it is written it is run under all four resolvers with 1, 2 and 4 threads, and declined if one disagrees with
    the given file (float: 1e-4 of the largest output; integers: cosine 0.999). `expand` pays from `minimum_saving`, as
    a share of the weight's bytes; it costs the dense weight's memory at run time. Details: `weights`, each with its
    form or the reason why it stays dense, `resolvers`. Raises ArtifactError on an unreadable file.
    """

    resolver: sparse_cost.Resolver = "xnnpack"
    minimum_gain: float = Field(default=1.1, ge=0)
    minimum_saving: float = Field(default=0.1, ge=0, lt=1)
    expand: bool = True
    format: Format = dataclasses.field(default="tflite", init=False)
    tolerance: Tolerance = dataclasses.field(default=_TOLERANCE, init=False)
    runners: ClassVar[tuple[str, ...]] = ("litert", "ssh")  # compilers for NPUs read such weights as dense ones

    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The rewritten file, or why there is none."""
        contents = files.read(source)
        content = source.read_bytes()
        model = packing.load(content, source.name)
        weights = sparse_graph.weights(model, source.name)
        rules = sparse_choice.Rules(self.minimum_gain, self.minimum_saving, self.expand, self.resolver, context.threads)
        choices = sparse_choice.choose(weights, rules)
        told: dict[str, Any] = {"weights": [choice.to_json() for choice in choices]}
        unguarded = sparse_store.unguarded(model)
        if not unguarded and all(choice.form == "dense" for choice in choices):
            return Change(NAME, False, f"declined: {_why_not(choices)}", told)
        for operator in unguarded:
            sparse_store.guard(model, operator)
        for choice in choices:
            if choice.form != "dense" and choice.encoded is not None:
                sparse_store.store(model, choice.weight, choice.encoded, expand=choice.form == "expand")
        made = packing.save(model, source.name)
        draft = context.scratch / f"{NAME}.tflite"
        draft.write_bytes(made)
        try:
            tolerance = _INTEGER if contents.integer_constants() else _FLOAT
            proof = agree_everywhere(source, draft, context.calibration[:4], tolerance, context.log)
        finally:
            draft.unlink()
        told["resolvers"] = proof
        if not proof["passed"]:
            return Change(NAME, False, f"declined: the function would change {proof['reason']}", told)
        if len(made) >= len(content) and not unguarded:
            return Change(NAME, False, f"declined: the file would not shrink ({len(content)} to {len(made)} B)", told)
        out.write_bytes(made)
        return Change(NAME, True, _why(choices, len(unguarded)), told)


def _why(choices: list[sparse_choice.Choice], mended: int) -> str:
    forms = Counter(choice.form for choice in choices)
    parts = []
    if forms["kernel"]:
        parts.append(f"{forms['kernel']} of {len(choices)} weights to sparse kernels")
    if forms["expand"]:
        parts.append(f"{forms['expand']} of {len(choices)} weights stored sparse, expanded at load")
    if mended:
        parts.append(f"{mended} unguarded sparse operators guarded")
    return "; ".join(parts) + ("; the rest: " + _why_not(choices) if forms["dense"] else "")


def _why_not(choices: list[sparse_choice.Choice]) -> str:
    """The reasons of those that stay dense, most frequent first."""
    if not choices:
        return "no operator of this file has a constant weight that could be stored sparse"
    reasons = Counter(choice.reason for choice in choices if choice.form == "dense")
    return "; ".join(f"{count} {reason}" for reason, count in sorted(reasons.items(), key=lambda i: (-i[1], i[0])))
