"""Tokens that a corpus never uses go: kept texts are split as before, outputs stay the same numbers, stock code loads it."""

from __future__ import annotations

import json
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
from edgeredux.data import python_docs, read_texts
from edgeredux.errors import DataError, ModelError
from edgeredux.feeds import Feeder
from edgeredux.model import Model
from edgeredux.pruning.vocabulary import Vocabulary
from edgeredux.pruning.vocabulary_tokenizer import closed
from edgeredux.quality import judge_answers
from edgeredux.readings import Reading

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


RECIPE = """
edgeredux: 1
name: words
model: {model}
max_length: 32
threads: 1
data: {{source: words.txt, evaluation: 40, calibration: 16, training: 60}}
reduce: [{steps}]
artifacts: {{onnx-float: {{format: onnx, passes: [fold]}}}}
targets: {{host-cpu: {{onnxruntime: {{dense: onnx-float, reduced: onnx-float, budget: {{size_ratio: 0.9}}}}}}}}
measure: {{repeats: 6, warmup: 1, sequence: 16}}
"""


def run(cli: Cli, tmp_path: Path, steps: str) -> dict[str, Any]:
    """The report of a run on texts, some of which hold words that the calibration and training parts never use."""
    loading.save(decoder("byte BPE"), tmp_path / "model")
    (tmp_path / "words.txt").write_text("\n".join(python_docs()[:300]), encoding="utf-8")
    recipe = RECIPE.format(model=json.dumps(str(tmp_path / "model")), steps=steps)
    (tmp_path / "words.yaml").write_text(recipe, encoding="utf-8")
    done = cli("run", "words.yaml", "--out", "out", "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_a_run_carries_the_rewritten_tokenizer_through(cli: Cli, tmp_path: Path) -> None:
    report = run(cli, tmp_path, "{vocabulary: {minimum_count: 3}}, {distill: {steps: 2}}")
    vocabulary = report["steps"][0]["details"]
    target = report["targets"][0]
    assert vocabulary["tokens_after"] < vocabulary["tokens_before"]
    dense, reduced = target["dense"]["quality"], target["reduced"]["quality"]
    assert reduced["n"] == dense["n"], "perplexity of both is per token of the dense model's, on the same texts"
    assert "texts: those that both tokenizers see whole" in reduced["how"]
    agreement = target["reduced"]["agreement_top1"]
    assert 0.5 < agreement["value"] <= 1
    assert 0 < agreement["n"] < reduced["n"], "some texts are split in another way, so no token is compared there"
    sizes = [AutoTokenizer.from_pretrained(tmp_path / "out" / place) for place in ("", "pytorch")]
    assert [len(made) for made in sizes] == [vocabulary["tokens_after"]] * 2
    with np.load(tmp_path / "out" / "samples" / "host-cpu.npz") as samples:
        assert all(int(samples[name].max()) < vocabulary["tokens_after"] for name in samples.files)


def test_rare_words_only_cost_what_they_must(tmp_path: Path) -> None:
    """Perplexity by hand: summed over all texts both see whole, divided by the dense model's tokens."""
    from dataclasses import replace

    from edgeredux.recipe import DataSection
    from edgeredux.yardstick import of_model, pair, take

    model = decoder("byte BPE")
    data = read_texts("python-docs")
    feeder = Feeder(model, data, DataSection(evaluation=60, calibration=16, training=16))
    pruned, _ = Vocabulary(minimum_count=3).apply(model, context(model, tmp_path, feeder.batches("training")))
    answers = of_model(model, feeder, 0).answers
    measures = pair(feeder, feeder.of(pruned), answers, {}, None)
    given = [take(pruned, pruned.run(feed), feed) for feed in measures["reduced"].feeds]
    reading = judge_answers(measures["reduced"], given, "measured", "here", 0)["quality"]
    assert isinstance(reading, Reading)
    alike = pair(feeder, replace(feeder), answers, {}, None)["reduced"]
    assert alike.counted is None, "no tokenizer was rewritten, so every text counts"
    loss, tokens, whole = 0.0, 0, 0
    for example in data.take("evaluation", 60):
        old = model.tokenizer(example.text, truncation=True, max_length=64)["input_ids"]
        new = pruned.tokenizer(example.text, truncation=True, max_length=64)["input_ids"]
        names = [made.convert_ids_to_tokens(ids) for made, ids in ((model.tokenizer, old), (pruned.tokenizer, new))]
        if names[0] != names[1] and max(len(old), len(new)) == 64:
            continue
        whole += 1
        ids = torch.tensor([new])
        with torch.inference_mode():
            logits = pruned.module(input_ids=ids).logits.double()
        loss += float(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum"))
        tokens += len(old) - 1
    assert 0 < whole < 60
    assert reading.n == tokens
    assert reading.value == pytest.approx(np.exp(loss / tokens), rel=1e-5)  # float32 logits
    dense = judge_answers(measures["dense"], answers, "measured", "here", 0)["quality"]
    assert isinstance(dense, Reading)
    assert dense.n == tokens


def test_the_teacher_speaks_the_students_tokens(tmp_path: Path) -> None:
    model = decoder("WordPiece")
    texts = corpus(model)
    step = Vocabulary()
    pruned, _ = step.apply(model, context(model, tmp_path, [model.encode(texts)]))
    teacher = step.same_tokens(model, pruned)
    feed = pruned.encode(texts)
    np.testing.assert_array_equal(teacher.run(feed)["logits"], pruned.run(feed)["logits"])
    assert len(model.tokenizer) > len(pruned.tokenizer)
