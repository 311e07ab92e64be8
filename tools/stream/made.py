"""A Qwen3-shaped checkpoint with random weights, written tensor by tensor, and texts to calibrate it on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from edgeredux.data import python_docs, read_texts
from edgeredux.pruning.checkpoint import Stored
from edgeredux.pruning.shards import Shards

# The shape of Qwen3-1.7B as its config.json says it.
QWEN3_1_7B = {
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "tie_word_embeddings": True,
}
_END = "<|endoftext|>"
_SPREAD = 0.02  # standard deviation of the weights, as Qwen3's config initialises them
_ROWS = 4096  # made at a time
_CHARACTERS = 800  # of a text: more than 128 tokens


def checkpoint(folder: Path, shape: dict[str, object], shard_mb: int, seed: int) -> int:
    """Writes the checkpoint with a tokenizer; how many weights it has, tied ones counted once."""
    config = transformers.Qwen3Config(**shape, architectures=["Qwen3ForCausalLM"], dtype="bfloat16")
    with torch.device("meta"):
        module = transformers.Qwen3ForCausalLM(config)
    wanted = {name: tuple(value.shape) for name, value in module.named_parameters()}  # what is tied is there once
    tensors = [Stored(name, "BF16", size, 0, 0, 2 * math.prod(size)) for name, size in wanted.items()]
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    shards = Shards(folder, tensors, shard_mb * 1_000_000)
    shards.create()
    for place, stored in enumerate(tensors):
        shards.write(stored.name, _pieces(stored.shape, seed * 100_003 + place))
    shards.sync()
    return sum(math.prod(size) for size in wanted.values())


def texts(path: Path, wanted: int) -> None:
    """A text file of which a recipe's data split gives at least `wanted` long texts for calibration."""
    sentences, found = python_docs(), []
    for first in range(0, len(sentences), 2):
        text = ""
        for sentence in sentences[first:]:
            if len(text) >= _CHARACTERS:
                break
            text = f"{text} {sentence}".strip()
        found.append(text)
    path.write_text("\n".join(found) + "\n", encoding="utf-8")
    there = len(read_texts(str(path)).take("calibration", wanted))
    if there < wanted:
        raise SystemExit(f"{wanted} sequences were asked for, the texts give {there}")


def _pieces(shape: tuple[int, ...], seed: int) -> Iterator[bytes]:
    """One norm's ones, or one matrix' normal numbers, as bfloat16."""
    if len(shape) == 1:
        yield _raw(torch.ones(shape))
        return
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, shape[0], _ROWS):
        rows = min(_ROWS, shape[0] - first)
        yield _raw(torch.randn(rows, *shape[1:], generator=generator) * _SPREAD)


def _raw(value: torch.Tensor) -> bytes:
    return value.bfloat16().view(torch.uint8).numpy().tobytes()


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Byte pairs of the texts' own kind, few enough to be trained in seconds."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=[_END], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(python_docs(), trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token=_END)
