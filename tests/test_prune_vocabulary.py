"""Tokens that a corpus never uses go: kept texts are split as before, outputs stay the same numbers, stock code loads it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Cli
from test_prune_structured import context
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from edgeredux import loading
from edgeredux.data import python_docs
from edgeredux.errors import DataError, ModelError
from edgeredux.model import Model
from edgeredux.pruning.vocabulary import Vocabulary
from edgeredux.pruning.vocabulary_tokenizer import closed

SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
KINDS = ["WordPiece", "BPE", "byte BPE", "Unigram"]


@lru_cache
def tokenizer(kind: str) -> Any:
    texts = python_docs()[:400]
    if kind == "WordPiece":
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=700, special_tokens=SPECIAL)
    elif kind == "Unigram":
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=700, special_tokens=SPECIAL, unk_token="<unk>")
    else:
        made = Tokenizer(models.BPE(unk_token=None if kind == "byte BPE" else "<unk>"))
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=SPECIAL)
        if kind == "byte BPE":
            made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            made.decoder = decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=SPECIAL, initial_alphabet=alphabet)
        else:
            made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def decoder(kind: str, tied: bool = True) -> Model:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    made = tokenizer(kind)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=len(made) + 5,  # padded beyond the tokenizer, as released models are
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    return Model(
        module=LlamaForCausalLM(config).eval(),
        name="tiny",
        task="causal-lm",
        input_names=("input_ids", "attention_mask"),
        output_names=("logits",),
        axes={},
        source="tiny",
        sha256="0" * 64,
        tokenizer=made,
        max_length=64,
        is_transformers=True,
    )


def corpus(model: Model) -> list[str]:
    return [text for text in python_docs()[:300] if len(text) < 120][:40]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_kept_texts_are_split_as_before_and_answered_alike(kind: str, tied: bool, tmp_path: Path) -> None:
    model = decoder(kind, tied)
    texts = corpus(model)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    pruned, change = Vocabulary().apply(model, context(model, tmp_path, [model.encode(texts)]))
    kept = change.details["kept"]
    assert len(kept) < len(model.tokenizer) < change.details["tokens_before"]
    for text in texts:
        old, new = model.encode([text]), pruned.encode([text])
        assert [kept[token] for token in new["input_ids"][0]] == old["input_ids"][0].tolist()
        wanted = model.run(old)["logits"][..., kept]
        np.testing.assert_allclose(pruned.run(new)["logits"], wanted, atol=1e-6)
    other = [text for text in python_docs()[2000:2100] if len(text) < 200]
    for text in other:  # texts it never saw are written with the pieces that are left
        tokens = pruned.tokenizer(text)["input_ids"]
        if model.tokenizer.unk_token_id not in model.tokenizer(text)["input_ids"]:
            assert pruned.tokenizer.unk_token_id not in tokens
            same = [model.tokenizer.decode(model.tokenizer(text)["input_ids"], skip_special_tokens=True)]
            assert [pruned.tokenizer.decode(tokens, skip_special_tokens=True)] == same or kind == "BPE"
    config = pruned.module.config
    assert config.vocab_size == len(kept) == len(pruned.tokenizer)
    assert pruned.tokenizer.convert_ids_to_tokens(config.eos_token_id) == "</s>"
    assert (pruned.module.lm_head.weight is pruned.module.model.embed_tokens.weight) == tied
    loading.save(pruned, tmp_path / "saved")
    stock = type(pruned.module).from_pretrained(tmp_path / "saved").eval()
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    feed = pruned.encode(texts[:2])
    assert again(texts)["input_ids"] == pruned.tokenizer(texts)["input_ids"]
    given = {name: torch.from_numpy(value) for name, value in feed.items()}
    np.testing.assert_allclose(stock(**given).logits.detach().numpy(), pruned.run(feed)["logits"], atol=1e-6)
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())


def test_pieces_of_a_kept_merge_stay() -> None:
    made = Tokenizer(
        models.BPE({"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "bc": 5}, [("a", "b"), ("ab", "c"), ("b", "c")])
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=made)
    assert closed(fast, [4]) == {0, 1, 2, 3, 4}
    assert closed(fast, [5]) == {0, 1, 2, 5}


def test_largest_and_multiple_of(tmp_path: Path) -> None:
    model = decoder("byte BPE")
    given = [model.encode(corpus(model))]
    few = Vocabulary(largest=10).apply(model, context(model, tmp_path, given))[1].details["kept"]
    many = Vocabulary(multiple_of=64).apply(model, context(model, tmp_path, given))[1].details["kept"]
    assert len(few) < len(many)
    assert len(many) % 64 == 0


def test_impossible_is_one_clear_error(tmp_path: Path) -> None:
    from dataclasses import replace

    model = decoder("WordPiece")
    with pytest.raises(ModelError, match="no tokenizer"):
        Vocabulary().check(replace(model, tokenizer=None))
    with pytest.raises(DataError, match="no data"):
        Vocabulary().apply(model, context(model, tmp_path, []))


def test_a_recipe_refuses_what_it_cannot_carry_through(cli: Cli, tmp_path: Path) -> None:
    loading.save(decoder("WordPiece"), tmp_path / "model")
    done = cli("reduce", "quickstart", "--model", tmp_path / "model", "--set", "reduce=[vocabulary]", "--out", "out")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "edgeredux.prune(model, pattern=" in done.stderr
    assert not (tmp_path / "out").exists()
