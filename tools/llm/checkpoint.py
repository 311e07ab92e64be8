"""A checkpoint of the shape of Qwen3-0.6B: random weights, and a made-up tokenizer with as many tokens."""

from __future__ import annotations

import itertools
import string
from pathlib import Path

import numpy as np
import transformers
from stream import made
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

# As its config.json says it.
QWEN3_0_6B = {
    **made.QWEN3_1_7B,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "bos_token_id": None,
    "eos_token_id": 151_935,
}
_END = "<|endoftext|>"


def write(folder: Path, shape: dict[str, object], seed: int) -> int:
    """Writes it; how many weights it has, tied ones counted once."""
    count = made.checkpoint(folder, shape, 2000, seed)
    tokenizer(int(str(shape["vocab_size"]))).save_pretrained(folder)
    return count


def tokenizer(size: int) -> transformers.PreTrainedTokenizerFast:
    """Byte pairs that nobody trained: bytes, then letters of two, three and four, each built of the one before."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = []
    for length in (2, 3, 4):
        for letters in itertools.product(string.ascii_lowercase, repeat=length):
            if len(pieces) < size - 1:
                word = "".join(letters)
                pieces.append(word)
                merges.append((word[:-1], word[-1]))
    found = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, merges))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens([_END])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=found, eos_token=_END)


def feeds(tokens: int, rows: int, length: int) -> list[dict[str, np.ndarray]]:
    """Calibration inputs in which each of the first `tokens` tokens occurs, in order."""
    ids = np.resize(np.arange(tokens), (max(rows, -(-tokens // length)), length))
    return [{"input_ids": part, "attention_mask": np.ones_like(part)} for part in np.array_split(ids, len(ids) // rows)]
