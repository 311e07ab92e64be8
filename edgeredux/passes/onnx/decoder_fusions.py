"""Attention of decoders with a key-value cache as one operator, whatever heads each layer has left."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux import caching
from edgeredux.artifact import Change, Format
from edgeredux.passes.onnx import files
from edgeredux.passes.onnx.attention_fuse import DOMAIN, AttentionFuser, lengths_known
from edgeredux.passes.onnx.attention_layer import AttentionLayer, attention_of, is_attention
from edgeredux.passes.onnx.attention_mask import Window, window_of
from edgeredux.passes.onnx.root_mean_square import DivideByRoot
from edgeredux.seams import PassContext, Tolerance


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DecoderFusions:
    """Cached attention and rotary positions as operators of ONNX Runtime, RMSNorm in the form that it fuses.

    Given   k = Concat(past, rotated k); y = MatMul(Softmax(MatMul(rotated q, repeated k) * scale + mask), repeated v)
    Result  y, k, v = com.microsoft.GroupQueryAttention(RotaryEmbedding(q), RotaryEmbedding(k), v, past k, past v, ...)

    Heads are each layer's own. A mask is taken for causal, with a window or without, only after it was computed and
    compared element by element (attention_mask.py); scale and cap of the scores are read from the graph. Batches,
    padding on either side, several tokens after a past: all as before, except what padding tokens at the left compute,
    which nobody reads. Angles are those of the graph, so that any scaling of the positions stays.

    A layer that is built otherwise stays, with the reason in `left`. Declines where no layer fuses. The result runs on
    ONNX Runtime 1.32 or newer only: the batches above need GroupQueryAttention's input query_seqlens.
    """

    format: Format = dataclasses.field(default="onnx", init=False)
    tolerance: Tolerance = dataclasses.field(
        default=Tolerance("the same function; another kernel sums in another order", atol=1e-3, rtol=1e-3), init=False
    )

    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The fused graph; details `attentions`, `rotations`, `norms`, `windows` by layer, `left` (layer -> why).

        Raises ArtifactError on an unreadable file.
        """
        cache = caching.of_onnx(source)
        model = files.read(source)
        common.NameFixPass()(model)
        if not cache or not lengths_known({str(value.name): value for value in model.graph.inputs}):
            return _declined("it is no decoder with input_ids, attention_mask and past_key_values")
        fuser = AttentionFuser(model.graph)
        windows: dict[str, int | None] = {}
        left: dict[str, str] = {}
        known: dict[ir.Value, Window | str] = {}
        for layer, softmax in _layers(model):
            if isinstance(layer, str):
                left[str(softmax.name)] = layer
                continue
            window = None if layer.mask is None else known.get(layer.mask)
            if window is None and layer.mask is not None:
                window = known[layer.mask] = window_of(layer.mask, model, cache)
            if window is None:
                window = "no mask is added to its scores"
            if isinstance(window, str):
                left[str(layer.index)] = window
                continue
            fuser.fuse(layer, window)
            windows[str(layer.index)] = window.size
        if not windows:
            reasons = "; ".join(sorted(set(left.values()))) or "it has no attention that reads a past"
            return _declined(reasons, left=left)
        norms = DivideByRoot()
        norms(model)
        common.RemoveUnusedNodesPass()(model)
        common.ClearMetadataAndDocStringPass()(model)
        model.opset_imports.setdefault(DOMAIN, 1)
        files.write(model, out)
        details: dict[str, Any] = {"attentions": len(windows), "rotations": fuser.turned, "norms": norms.norms}
        details |= {"windows": windows, "left": left}
        why = f"{len(windows)} attentions and {fuser.turned} rotations became one operator each"
        stays = f", {len(left)} stay ({'; '.join(sorted(set(left.values())))})" if left else ""
        return Change("decoder_fusions", True, f"{why}{stays}; runs on ONNX Runtime only", details)


def _layers(model: ir.Model) -> list[tuple[AttentionLayer | str, ir.Node]]:
    return [(attention_of(node), node) for node in list(model.graph) if is_attention(node)]


def _declined(why: str, **details: Any) -> Change:
    return Change("decoder_fusions", False, f"declined: {why}", details)
