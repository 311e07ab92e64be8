"""Language models: perplexity of two decoders, dense and pruned.

stories260K    the 260,032-parameter Llama trained on TinyStories: 128 of its own samples calibrate, 200 others
               and three real stories judge
demo           the demo model of the recipe llm-quickstart: the calibration part of its texts calibrates, the evaluation
               part judges
shakespeare    a decoder of about a million parameters, trained here on tinyshakespeare with its own BPE tokenizer
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import edgeredux
from edgeredux.data import read_texts
from edgeredux.model import Model
from edgeredux.seams import Feed

_WINDOW = 128  # tokens a sequence
_BATCH = 16
_VOCABULARY, _STEPS, _SEED, _RATE = 1024, 900, 0, 3e-3


@dataclass(frozen=True)
class Decoder:
    """A causal language model with what it is calibrated and judged on."""

    name: str
    model: Model
    calibration: Sequence[Feed]
    judged: dict[str, Sequence[Feed]]

    def perplexities(self, model: Model) -> dict[str, float]:
        """exp(mean negative log likelihood a token), by text."""
        return {name: perplexity(model, feeds) for name, feeds in self.judged.items()}


def perplexity(model: Model, feeds: Sequence[Feed]) -> float:
    """exp of the mean cross entropy of each next token that is not padding."""
    total, count = 0.0, 0
    for feed in feeds:
        logits = torch.from_numpy(model.run(feed)[model.output_names[0]])[:, :-1].double()
        real = torch.from_numpy(feed["attention_mask"][:, 1:]).bool()
        target = torch.from_numpy(feed["input_ids"][:, 1:])
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), target, reduction="none")
        total += float(loss[real].sum())
        count += int(real.sum())
    return math.exp(total / count)


def stories(data: Path) -> Decoder:
    """The TinyStories Llama. 128 of its samples calibrate, 200 others and the real stories judge."""
    model = edgeredux.load(str(data / "model-stories260K-hf"), max_length=512)
    folder = data / "data-tinystories-excerpts"
    sampled = _stories(folder / "stories260K_samples_T1_topp0.95.txt")
    judged: dict[str, Sequence[Feed]] = {"real stories": _encode(model, _stories(folder / "excerpts.txt"))}
    judged["its samples"] = _encode(model, sampled[-200:])
    return Decoder("stories260K", model, _encode(model, sampled[:128]), judged)


def demo(source: str) -> tuple[Decoder, list[Feed]]:
    """The demo model, and batches of the training part of its texts."""
    model = edgeredux.load(source, max_length=_WINDOW)
    parts = {
        name: _encode(model, [example.text for example in examples])
        for name, examples in read_texts("python-docs").parts.items()
    }
    return Decoder("demo", model, parts["calibration"], {"held-out": parts["evaluation"]}), parts["training"]


def _stories(path: Path) -> list[str]:
    parts = [part.strip() for part in path.read_text(encoding="utf-8").split("<|endoftext|>")]
    return [part for part in parts if part]


def _encode(model: Model, texts: Sequence[str]) -> list[Feed]:
    return [model.encode(texts[place : place + _BATCH]) for place in range(0, len(texts), _BATCH)]


def shakespeare(data: Path, cache: Path, threads: int) -> Decoder:
    """The trained decoder, from `cache` when it was trained there before.

    The first 90 % of the text train and, in part, calibrate, as a user would do it; the rest judges.
    """
    text = (data / "data-tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    cut = len(text) * 9 // 10
    key = [_config().to_json_string(), _VOCABULARY, _STEPS, _SEED, _RATE, _WINDOW, torch.__version__, threads, text]
    folder = cache / f"shakespeare-{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}"
    if not (folder / "config.json").is_file():
        _train(text[:cut], folder, threads)
    model = edgeredux.load(str(folder), max_length=_WINDOW)
    calibration = _windows(model.tokenizer, text[:cut])[::16][:64]
    return Decoder(
        "shakespeare", model, _batched(calibration), {"held-out": _batched(_windows(model.tokenizer, text[cut:]))}
    )


def _config() -> Any:
    return transformers.LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=_WINDOW,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )


def _train(text: str, folder: Path, threads: int) -> None:
    """AdamW with warm-up and cosine decay on random windows; every random number from _SEED."""
    torch.set_num_threads(threads)
    torch.manual_seed(_SEED)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(text.split("\n\n"), trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", pad_token="<s>"
    )
    tokens = torch.tensor(fast(text, verbose=False)["input_ids"])
    module = transformers.LlamaForCausalLM(_config())
    optimizer = torch.optim.AdamW(module.parameters(), lr=_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    generator = torch.Generator().manual_seed(_SEED)
    for step in range(_STEPS):
        scale = min((step + 1) / 50, 0.5 * (1 + math.cos(math.pi * step / _STEPS)))
        for group in optimizer.param_groups:
            group["lr"] = _RATE * scale
        starts = torch.randint(0, len(tokens) - _WINDOW, (_BATCH, 1), generator=generator)
        batch = tokens[starts + torch.arange(_WINDOW)]
        loss = module(input_ids=batch, labels=batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)
    module.save_pretrained(folder)  # writes config.json, which says that the folder is whole, with the weights


def _windows(tokenizer: Any, text: str) -> list[np.ndarray[Any, Any]]:
    tokens = np.array(tokenizer(text, verbose=False)["input_ids"], dtype=np.int64)
    return list(tokens[: len(tokens) // _WINDOW * _WINDOW].reshape(-1, _WINDOW))


def _batched(windows: Sequence[np.ndarray[Any, Any]]) -> list[Feed]:
    parts = [np.stack(windows[place : place + _BATCH]) for place in range(0, len(windows), _BATCH)]
    return [{"input_ids": part, "attention_mask": np.ones_like(part)} for part in parts]
