"""Where a transformer makes its queries, keys and values, found by the names the field gives those layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from edgeredux.errors import ModelError
from edgeredux.model import Model

_PARTS = ("query", "key", "value")
# BERT, ViT; Llama, Qwen, Gemma, OPT, Whisper; DistilBERT.
_SEPARATE = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"))
_FUSED = ("c_attn",)  # GPT-2: one layer that writes queries, keys and values side by side
_HEAD_SIZES = ("head_dim", "attention_head_size", "attention_head_dim")


@dataclass(frozen=True)
class Projections:
    """One attention layer: module path -> the parts its output holds, and the size of a head (0: not known)."""

    modules: Mapping[str, tuple[str, ...]]
    head_size: int

    def repeated(self, parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The parts with every key and value head repeated for the query heads that share it, [.., query width]."""
        width = parts["query"].shape[-1]
        made = {}
        for name, value in parts.items():
            times = width // value.shape[-1]
            if times > 1:
                heads = value.view(*value.shape[:-1], -1, self.head_size)
                value = heads.repeat_interleave(times, -2).flatten(-2)
            made[name] = value
        return made


def projections(model: Model) -> list[Projections]:
    """The self-attention layers in the model's order. Raises ModelError when none of a known structure is there."""
    found: list[Projections] = []
    for path, part in model.module.named_modules():
        children = dict(part.named_children())
        dot = f"{path}." if path else ""
        size = next((getattr(part, name) for name in _HEAD_SIZES if isinstance(getattr(part, name, None), int)), 0)
        for names in _SEPARATE:
            if all(name in children for name in names):
                paths = {dot + name: (kind,) for name, kind in zip(names, _PARTS, strict=True)}
                found.append(Projections(paths, size))
        for name in _FUSED:
            if name in children:
                found.append(Projections({dot + name: _PARTS}, size))
    if not found:
        known = ", ".join("/".join(names) for names in _SEPARATE)
        raise ModelError(f"model {model.name} has no attention layer of a known structure ({known}, c_attn)")
    return found
