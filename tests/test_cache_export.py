"""A decoder's key-value cache as inputs and outputs of its file; test_greedy_parity.py holds what it generates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_models import decoder_of, tiny_bert, tiny_llama

from edgeredux import caching
from edgeredux.decoding import with_cache
from edgeredux.errors import ArtifactError, ModelError
from edgeredux.export.to_onnx import TorchOnnx
from edgeredux.model import Model
from edgeredux.seams import ExportJob, Feed

VOCABULARY = 120
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def decoder(family: str) -> Model:
    """A decoder of random weights; windows and ropes as the family has them."""
    torch.manual_seed(0)
    config: Any = {
        "llama": lambda: transformers.LlamaConfig(**SIZES),
        "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=8),
        "gemma3": lambda: transformers.Gemma3TextConfig(
            **SIZES, head_dim=8, sliding_window=16, query_pre_attn_scalar=8
        ),
        "gpt2": lambda: transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    }[family]()
    return decoder_of(config, family)


def feed(cache: caching.Cache, batch: int, tokens: int, past: int, padding: int = 0) -> Feed:
    mask = np.ones((batch, past + tokens), np.int64)
    mask[-1, mask.shape[1] - padding :] = 0
    ids = np.random.default_rng(tokens).integers(3, VOCABULARY, (batch, tokens))
    before = caching.made_up(cache, batch, past) if past else caching.empty(cache, batch)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": caching.positions(mask, tokens), **before}


def export(model: Model, tmp_path: Path) -> tuple[Path, Model]:
    cached = with_cache(model)
    sizes = ((2, 3, 5), (1, 1, 9), (1, 1, 0), (2, 40, 0, 5), (1, 2, 40))
    samples = [feed(cached.cache, *size) for size in sizes]
    out = tmp_path / "model.onnx"
    change = TorchOnnx().export(ExportJob(model=cached, samples=samples, out=out, shapes={}, log=tmp_path / "log.txt"))
    assert change.details["parity"]["passed"]
    return out, cached


def test_positions_skip_padding_as_transformers_does() -> None:
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    assert caching.positions(mask, 5).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3]]
    assert caching.positions(mask, 2).tolist() == [[1, 2], [3, 3]]


def test_a_context_too_short_to_time_is_missing_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeredux.readings import Missing, Reading
    from edgeredux.runners import decoding_speed
    from edgeredux.seams import ProfileJob

    out, _ = export(decoder("gpt2"), tmp_path)
    job = ProfileJob(
        artifacts={"dense": out},
        latency_feeds={"dense": []},
        quality_feeds={"dense": []},
        options={},
        hardware={},
        threads=1,
        repeats=1,
        warmup=0,
        scratch=tmp_path,
        log=tmp_path / "log",
    )
    assert decoding_speed.is_decoder(job)
    timed = decoding_speed.measure(job, "all")["dense"]
    energy = timed.pop("energy_mj_per_token")
    assert isinstance(energy, Missing)
    assert "neither a meter nor an energy model" in energy.reason
    assert all(isinstance(reading, Reading) for reading in timed.values())
    monkeypatch.setattr(decoding_speed, "PROMPT", 200)  # of 128 positions
    untimed = decoding_speed.measure(job, "all")["dense"]
    for name in decoding_speed.SPEEDS:
        reading = untimed[name]
        assert isinstance(reading, Missing)
        assert "200 tokens and 32 more" in reading.reason
    assert untimed["cache_bytes_per_token"] == timed["cache_bytes_per_token"]


def test_what_has_no_cache_is_refused() -> None:
    with pytest.raises(ModelError, match="causal-lm models of transformers"):
        with_cache(tiny_bert())
    names = [("past_key_values.0.key", [1, 2, 0, 8]), ("past_key_values.0.value", [1, 2, 0, 8])]
    with pytest.raises(ArtifactError, match=r"past_key_values\.1\.key must be there"):
        caching.of_inputs(iter([*names, ("past_key_values.1.value", [1, 2, 0, 8])]), "file")
    with pytest.raises(ArtifactError, match="fixed heads and size"):
        caching.of_inputs(iter([("past_key_values.0.key", ["b", "h", "p", 8])]), "file")
    assert with_cache(tiny_llama()).cache[0].heads == 2
