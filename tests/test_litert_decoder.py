"""Decoders in LiteRT: prefill and decode from our own wrapper say what transformers says, also where layers differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import Cli
from test_greedy_parity import UNEVEN
from test_greedy_parity import decoder as random_decoder
from test_prune_structured import context
from test_prune_vocabulary import decoder
from tiny_models import greedy_of_transformers

from edgeredux import litert_decoder, loading
from edgeredux.errors import ArtifactError, BundleError
from edgeredux.generation import Sampling, Timing, generate
from edgeredux.static_generation import TfliteDecoder

pytest.importorskip("litert_torch")
COUNT = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reduced model of a two-layered decoder with windows of 16 tokens, two and three KV heads; then LiteRT's."""
    place = tmp_path_factory.mktemp("litert")
    dense = random_decoder("gemma3_text")
    model, _ = UNEVEN.apply(dense, context(dense, place))
    torch.manual_seed(0)
    loading.save(model, place / "pytorch")
    said = litert_decoder.write(place / "pytorch", place / "litert", 8, 64, 1)
    assert said["heads"] == [2, 3]
    # Weights are there once, although two signatures read them.
    assert said["model"] < 1.2 * 4 * model.parameters() + 400_000
    return place


def test_greedy_tokens_are_those_of_pytorch(folder: Path) -> None:
    module = loading.load(str(folder / "pytorch"), task="causal-lm").module
    opened = TfliteDecoder(folder / "litert" / "model.tflite", 1)
    texts = []
    for length in (1, 7, 8, 21):
        prompt = [5 + 11 * place % 100 for place in range(length)]
        wanted = greedy_of_transformers(module, prompt, COUNT)
        found = list(generate(opened, prompt, COUNT, frozenset(), Sampling(), Timing()))
        assert found == wanted
        texts.append(found)
    assert len({token for text in texts for token in text}) > COUNT, "texts of one token prove nothing"


def test_a_prompt_may_come_in_pieces(folder: Path) -> None:
    opened = TfliteDecoder(folder / "litert" / "model.tflite", 1)
    whole = opened.feed(list(range(3, 20)))
    opened.reset()
    opened.feed(list(range(3, 8)))
    pieces = opened.feed(list(range(8, 20)))
    assert abs(whole - pieces).max() < 1e-3  # float32 sums in another order, logits of some tens
    with pytest.raises(ArtifactError, match="keeps 64 tokens"):
        opened.feed([1] * 48)


def test_text_from_the_folder(folder: Path, cli: Cli, tmp_path: Path) -> None:
    model = decoder("byte BPE")
    loading.save(model, tmp_path / "model")
    made = cli("litert", tmp_path / "model", tmp_path / "litert", "--prompt-tokens", 8, "--context", 48, "--json")
    assert made.returncode == 0, made.stderr
    done = cli("generate", tmp_path / "litert", "The function returns", "--max-tokens", 12, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    ids = torch.tensor([model.tokenizer("The function returns")["input_ids"][:-1]])
    wanted = model.module.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)  # type: ignore[operator]
    kept = [token for token in wanted[0, ids.shape[1] :].tolist() if token != model.tokenizer.eos_token_id]
    assert said["tokens"] == kept
    long = cli("generate", tmp_path / "litert", "word " * 60)
    assert long.returncode == 2
    assert "the model sees at most 48" in long.stderr
    assert long.stderr.count("\n") == 1


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not empty"):
        litert_decoder.write(folder / "pytorch", folder / "litert", 8, 64, 1)
    with pytest.raises(BundleError, match="allowed are 1 to context"):
        litert_decoder.write(folder / "pytorch", tmp_path / "new", 64, 64, 1)
    (tmp_path / "model.tflite").write_bytes(b"no model")
    with pytest.raises(ArtifactError, match="LiteRT cannot load it"):
        TfliteDecoder(tmp_path / "model.tflite", 1)
