"""What a decoder's config says that cannot work, found before its weights are read: one line each."""

from __future__ import annotations

from typing import Any

from edgeredux.errors import ModelError

# Layers whose past is keys and values [batch, heads, tokens, size]; a window is in the mask (decoding.py).
CACHED_LAYERS = ("full_attention", "sliding_attention")


def check_heads(config: Any, source: str) -> None:
    """Raise ModelError where query heads cannot be shared out evenly among the KV heads."""
    queries, keys = (getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    if not isinstance(queries, int) or not isinstance(keys, int):
        return  # no grouped-query attention, or heads that differ by layer
    if keys < 1 or queries % keys:
        raise ModelError(
            f"model {source}: config.json: num_key_value_heads {keys} does not divide num_attention_heads {queries}; "
            "every KV head must serve as many query heads"
        )


def check_tokens(config: Any, tokenizer: Any, source: str) -> None:
    """Raise ModelError for a tokenizer with a token that the model's vocabulary does not have."""
    size = getattr(config, "vocab_size", None)
    if tokenizer is None or not isinstance(size, int):
        return
    last = max(tokenizer.get_vocab().values(), default=-1)
    if last >= size:
        raise ModelError(
            f"model {source}: its tokenizer has tokens up to number {last}, the model {size} tokens (vocab_size): they "
            "do not belong together"
        )


def check_cached_layers(config: Any, name: str) -> None:
    """Raise ModelError for a layer that keeps something else than keys and values, by its type."""
    for index, kind in enumerate(getattr(config, "layer_types", None) or ()):
        if kind not in CACHED_LAYERS:
            raise ModelError(
                f"model {name}: layer {index} is of type {kind}, which cannot be exported with a cache; "
                f"supported: {', '.join(CACHED_LAYERS)}"
            )
