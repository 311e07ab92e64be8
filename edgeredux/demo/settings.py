"""What the demo models are, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class DemoSettings:
    """Shape and training of a Llama-shaped decoder with tied embeddings and grouped-query attention."""

    vocabulary: int  # tokens of its byte-level BPE, at most
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    steps: int
    batch: int
    learning_rate: float
    weight_decay: float = 0.1
    warmup: float = 0.05
    context: int = 256  # positions
    max_length: int = 128  # tokens of a training sample: texts one after the other, cut where it is full
    seed: int = 0
    threads: int = 1  # sums are split by thread: more of them, other last bits; layers this small gain little by it
    checkpoint_every: int = 50
    data: str = "python-docs"
    library: bool = False  # read the standard library's docstrings and comments, too
    repeats: int = 4  # how often the texts stand among those, which stand there once


DEMOS: Mapping[str, DemoSettings] = {
    # 3.6 million parameters. A step reads 2048 tokens: 0.92 million in all.
    "llm": DemoSettings(
        vocabulary=2048,
        hidden=192,
        ffn=512,
        layers=8,
        heads=8,
        kv_heads=4,
        steps=450,
        batch=16,
        learning_rate=4e-3,
        library=True,
    ),
    # The same way in seconds, for a first look at a recipe; it has learnt next to nothing.
    "llm-tiny": DemoSettings(
        vocabulary=512, hidden=64, ffn=128, layers=4, heads=4, kv_heads=2, steps=30, batch=16, learning_rate=5e-3
    ),
}
