"""Greedy tokens of an exported decoder are transformers' own: full and unevenly pruned; int8 and int4 stay near."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from test_cache_export import feed
from test_prune_structured import context
from tiny_models import decoder_of, greedy_of_transformers

import edgeredux
from edgeredux import caching, registry
from edgeredux.artifact import Artifact
from edgeredux.decoding import with_cache
from edgeredux.execute import execute, onnx_session
from edgeredux.export.to_onnx import TorchOnnx
from edgeredux.generation import Decoder, Sampling, Timing, generate
from edgeredux.model import Model
from edgeredux.pruning.groups import find
from edgeredux.pruning.structured import Structured
from edgeredux.rewrite import rewrite
from edgeredux.seams import ExportJob, PassContext

VOCABULARY, COUNT = 120, 64
FAMILIES = ("llama", "qwen3", "gemma3_text", "gpt2")
# Layer 0 keeps half of its neurons and two of four KV heads, layer 1 seven tenths and three: no two layers are alike.
UNEVEN = Structured(ffn={"*.0.*": 0.5, "*.1.*": 0.3}, heads={"*.0.*": 0.5, "*.1.*": 0.25}, repair="none")


def decoder(kind: str) -> Model:
    """Two layers of random weights, so wide apart that texts do not run into one repeated token."""
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if kind == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    if kind == "gemma3_text":
        sizes |= {"sliding_window": 16, "query_pre_attn_scalar": 8}
    # Tied embeddings of random weights say the last token again and again.
    sizes |= {"vocab_size": VOCABULARY, "tie_word_embeddings": False, "initializer_range": 0.5}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **sizes)
    return decoder_of(config, kind)


def exported(model: Model, folder: Path) -> Path:
    """The decoder's file as a recipe with `cache: true` has it."""
    cached = with_cache(model)
    samples = [feed(cached.cache, *size) for size in ((2, 3, 5), (1, 1, 9), (1, 6, 0))]
    out = folder / "model.onnx"
    change = TorchOnnx().export(ExportJob(model=cached, samples=samples, out=out, shapes={}, log=folder / "log.txt"))
    assert change.details["parity"]["passed"]
    return out


def prompts(vocabulary: int) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(3, vocabulary, length).tolist() for length in (1, 3, 5, 9, 20)]


class Forgetful(Decoder):
    """A decoder gone wrong: its keys and values of earlier tokens are half of what they were."""

    def feed(self, tokens: Sequence[int]) -> Any:
        for value in self._past.values():
            value.update_inplace(value.numpy() / 2)
        return super().feed(tokens)


def greedy(path: Path, prompt: list[int], kind: type[Decoder] = Decoder) -> list[int]:
    opened = kind(path, lambda: onnx_session(path, 1))
    return list(generate(opened, prompt, COUNT, frozenset(), Sampling(), Timing()))


def same_tokens(model: Model, path: Path) -> None:
    """64 tokens after each of 5 prompts, and a cache gone wrong would be seen."""
    spoilt = []
    for prompt in prompts(model.module.config.vocab_size):  # type: ignore[union-attr]
        wanted = greedy_of_transformers(model.module, prompt, COUNT)
        assert greedy(path, prompt) == wanted
        spoilt.append(greedy(path, prompt, Forgetful) != wanted)
    assert sum(spoilt) >= 4, "texts that hang on no cache prove nothing"


@pytest.mark.parametrize("form", ["full", "uneven"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(kind: str, form: str, tmp_path: Path) -> None:
    model = decoder(kind)
    if form == "uneven":
        model, _ = UNEVEN.apply(model, context(model, tmp_path))
        assert [layer.heads for layer in with_cache(model).cache] == [2, 3]
        assert next(group.units for group in find(model.module) if group.kind == "ffn") == (
            64 if kind == "gpt2" else 24
        )
    path = exported(model, tmp_path)
    assert caching.of_onnx(path) == with_cache(model).cache
    same_tokens(model, path)


def moved(wanted: Sequence[Any], given: Sequence[Any]) -> float:
    """Root mean square of what logits moved by over that of the logits, both around their mean at each position."""
    before, after = (np.concatenate([value.reshape(-1, value.shape[-1]) for value in side]) for side in (wanted, given))
    before, after = (value - value.mean(-1, keepdims=True) for value in (before, after))
    return float(np.linalg.norm(after - before) / np.linalg.norm(before))


@pytest.fixture(scope="module")
def stories(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path, Any]:
    """The TinyStories Llama, its exported file and texts [feeds] with an empty past."""
    folder = shared_data / "model-stories260K-hf"
    if not folder.is_dir():
        pytest.skip("../shared/data holds no model-stories260K-hf")
    model = edgeredux.load(str(folder), max_length=128)
    said = (shared_data / "data-tinystories-excerpts" / "excerpts.txt").read_text(encoding="utf-8")
    texts = [text.strip() for text in said.split("<|endoftext|>") if text.strip()]
    cache = with_cache(model).cache
    feeds = []
    for text in texts:
        ids = model.encode([text])["input_ids"][:, :128]
        mask = np.ones_like(ids)
        positions = caching.positions(mask, ids.shape[1])
        feeds.append({"input_ids": ids, "attention_mask": mask, "position_ids": positions, **caching.empty(cache, 1)})
    return model, exported(model, tmp_path_factory.mktemp("stories")), feeds


def test_greedy_tokens_of_a_trained_decoder(stories: Any) -> None:
    model, path, _ = stories
    same_tokens(model, path)


# Rounding to steps of s moves a weight by s / sqrt(12) in the mean square. The steps are 1/127 of a column's largest
# weight in int8 (some 3 times its root mean square), as large again for activations of 8 bits, and 1/7 of a block's in
# int4 (2.2 times): 1.0 % and 9.1 % of what a layer says. 21 layers in a row (4 a block, 5 blocks, the head), each
# counted as if it carried the whole signal, add up to sqrt(21) times that.
@pytest.mark.parametrize(("step", "limit"), [("int8_dynamic", 0.046), ("int4_weights", 0.42)])
def test_teacher_forced_logits_move_by_no_more_than_rounding(
    stories: Any, step: str, limit: float, tmp_path: Path
) -> None:
    model, path, feeds = stories
    log = tmp_path / "log.txt"
    around = PassContext(calibration=feeds, log=log, scratch=tmp_path)
    passes = [(step, registry.create("pass", step, {}, "test"))]
    made = rewrite(Artifact.of(path, "float", "reduced", ()), passes, around, feeds, tmp_path)
    assert made.history[-1].changed
    wanted = [model.run({name: feed[name] for name in model.input_names})["logits"] for feed in feeds]
    given = [out["logits"] for out in execute(made.path, feeds, log=log)]
    assert limit / 10 < moved(wanted, given) < limit
