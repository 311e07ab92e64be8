"""Distillation's other options: a cached teacher, generated texts, precision, fine-tuning."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_prune_structured import bert, context
from tiny_models import tiny_bert, tiny_classifier, tiny_llama, tokens, two_heads

from edgeredux.distillation.finetune import Finetune
from edgeredux.distillation.step import Distill, Sequences
from edgeredux.errors import DataError, EnvironmentProblem, RecipeError
from edgeredux.model import Model
from edgeredux.registry import create
from edgeredux.seams import ReduceContext
from edgeredux.training.generation import Generated, continued, marked, rewritten


def data(model: Model, folder: Path, *sizes: tuple[int, int]) -> ReduceContext:
    folder.mkdir(exist_ok=True)
    return dataclasses.replace(
        context(bert(), folder), teacher=model, training=tokens(model, *(sizes or ((8, 9),) * 4))
    )


def same(a: Model, b: Model) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.module.parameters(), b.module.parameters(), strict=True))


def shaken(model: Model) -> Model:
    torch.manual_seed(5)
    with torch.no_grad():
        for value in model.module.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return model


@pytest.mark.parametrize(
    ("make", "losses"),
    [
        (tiny_bert, {"embedding": 1.0, "hidden": 1.0, "value_relation": 1.0}),
        (tiny_classifier, {"logits": 1.0}),
        (tiny_llama, {"top_k": {"k": 5}, "hidden": 1.0}),
        (two_heads, {"output": 1.0}),
    ],
)
def test_a_cached_teacher_teaches_the_same(make: Any, losses: dict[str, Any], tmp_path: Path) -> None:
    """Nearly: its answers come from batches with other padding. And the second run asks it nothing."""
    from tiny_models import images

    teacher = make()
    given = data(teacher, tmp_path / "a") if make is not two_heads else data(tiny_bert(), tmp_path / "a")
    if make is two_heads:
        given = dataclasses.replace(given, teacher=teacher, training=images(5, 5, 5))
    samples = sum(len(next(iter(feed.values()))) for feed in given.training)
    step = {"steps": 6, "batch_size": 4, "losses": losses}
    folder = tmp_path / "kept"
    plain, _ = Distill(**step).apply(shaken(make()), given)
    shutil.rmtree(given.scratch)
    given.scratch.mkdir()
    cached, first = Distill(**step, cache=str(folder)).apply(shaken(make()), given)
    again, second = Distill(**step, cache=str(folder)).apply(shaken(make()), given)
    assert (first.details["teacher_answers_computed"], second.details["teacher_answers_computed"]) == (samples, 0)
    assert same(cached, again)
    for a, b in zip(plain.module.parameters(), cached.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_another_teacher_data_or_loss_is_another_cache(tmp_path: Path) -> None:
    folder = tmp_path / "kept"

    def computed(teacher: Model, losses: dict[str, Any], rows: int = 8) -> int:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        step = Distill(steps=1, losses=losses, cache=str(folder))
        _, change = step.apply(tiny_bert(), data(teacher, tmp_path / "run", (rows, 9)))
        return int(change.details["teacher_answers_computed"])

    assert computed(tiny_bert(), {"embedding": 1.0}) == 8
    assert computed(tiny_bert(), {"embedding": 2.0}) == 0  # a factor is no other answer
    assert computed(tiny_bert(), {"embedding": 1.0, "hidden": 1.0}) == 8
    assert computed(shaken(tiny_bert()), {"embedding": 1.0}) == 8
    assert computed(tiny_bert(), {"embedding": 1.0}, rows=6) == 6
    assert len(list(folder.iterdir())) == 4


def test_a_wrong_or_damaged_cache_is_refused(tmp_path: Path) -> None:
    def go() -> None:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        step = Distill(steps=1, losses={"embedding": 1.0}, cache=str(tmp_path / "kept"))
        step.apply(tiny_bert(), data(tiny_bert(), tmp_path / "run"))

    go()
    (path,) = (tmp_path / "kept").glob("*/*.safetensors")
    right = path.read_bytes()
    wrong = bytearray(right)
    wrong[-3] ^= 1
    path.write_bytes(wrong)
    with pytest.raises(DataError, match="not what was written; delete it"):
        go()
    path.write_bytes(right[:-8])
    with pytest.raises(DataError, match="damaged"):
        go()
    step = Distill(steps=1, losses={"hidden": 1.0}, cache=str(tmp_path / "kept"))
    path.write_bytes(right)
    step.apply(tiny_bert(), data(tiny_bert(), tmp_path / "other"))
    (theirs,) = (file for file in (tmp_path / "kept").glob("*/*.safetensors") if file != path)
    shutil.copy(theirs, path)
    with pytest.raises(DataError, match="another teacher, data or losses"):
        go()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_distill_options import *
def progress(text, done, total):
    if text.startswith("teacher") and done == 512:
        os.kill(os.getpid(), signal.SIGKILL)
given = data(tiny_bert(), Path({scratch!r}), (600, 4))
STEP.apply(tiny_bert(), dataclasses.replace(given, progress=progress))
"""
STEP = Distill(steps=2, losses={"embedding": 1.0}, cache="run")


def test_a_cache_survives_a_kill(tmp_path: Path) -> None:
    script = KILLED.format(tests=str(Path(__file__).parent), scratch=str(tmp_path / "run"))
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    given = data(tiny_bert(), tmp_path / "run", (600, 4))
    resumed, change = STEP.apply(tiny_bert(), given)
    assert change.details["teacher_answers_computed"] == 600 - 512
    whole, _ = STEP.apply(tiny_bert(), data(tiny_bert(), tmp_path / "fresh", (600, 4)))
    assert same(resumed, whole)


def test_a_teacher_in_bfloat16(tmp_path: Path) -> None:
    teacher = tiny_bert()
    half, _ = Distill(steps=3, teacher_precision="bfloat16").apply(shaken(tiny_bert()), data(teacher, tmp_path / "a"))
    full, _ = Distill(steps=3).apply(shaken(tiny_bert()), data(teacher, tmp_path / "b"))
    assert teacher.module.dtype == torch.float32
    assert not same(half, full)
    for a, b in zip(half.module.parameters(), full.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)  # three AdamW steps of 2e-4, each way


@pytest.mark.parametrize("options", [{"precision": "bfloat16"}, {"accumulate": 2}, {"optimizer": "sgd"}])
def test_zeros_stay_exact_whatever_the_arithmetic(options: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_llama()
    weight = model.module.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        weight[::2] = 0
    step = Distill(steps=5, learning_rate=1e-2, weight_decay=0.1, losses={"jsd": 1.0}, **options)
    trained, _ = step.apply(model, data(tiny_llama(), tmp_path))
    after = trained.module.model.layers[0].mlp.up_proj.weight
    assert bool((after[::2] == 0).all())
    assert not torch.equal(after[1::2], weight[1::2])
    assert after.dtype == torch.float32


def test_recomputing_activations_gives_the_same_student(tmp_path: Path) -> None:
    plain, _ = Distill(steps=4).apply(shaken(tiny_llama()), data(tiny_llama(), tmp_path / "a"))
    saved, _ = Distill(steps=4, recompute=True).apply(shaken(tiny_llama()), data(tiny_llama(), tmp_path / "b"))
    for a, b in zip(plain.module.parameters(), saved.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    with pytest.raises(RecipeError, match="recompute needs a transformers model"):
        Distill(recompute=True).check(two_heads())


def test_greedy_continuation_is_transformers_own() -> None:
    model = tiny_llama()
    model.module.generation_config.eos_token_id = model.module.config.eos_token_id = None
    prompts = torch.tensor([[5, 6, 7], [8, 9, 10]])
    got = continued(model, prompts, 6, 0.0, torch.Generator())
    wanted = model.module.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=6, do_sample=False, pad_token_id=0
    )
    assert torch.equal(got, wanted)


def test_sampling_follows_the_models_probabilities() -> None:
    model = tiny_llama()
    prompts = torch.tensor([[5, 6, 7]]).expand(4000, -1)
    drawn = continued(model, prompts, 1, 0.7, torch.Generator().manual_seed(0))[:, -1]
    with torch.no_grad():
        out = model.forward({"input_ids": prompts[:1], "attention_mask": torch.ones_like(prompts[:1])})
        wanted = (out["logits"][0, -1] / 0.7).softmax(-1)
    counts = torch.bincount(drawn, minlength=50) / 4000
    # Five standard deviations of a share near 1/50 among 4000 draws: 5 * sqrt(0.02 / 4000) = 0.011.
    assert float((counts - wanted).abs().max()) < 0.012


def test_what_follows_the_end_does_not_count() -> None:
    feed = marked(np.array([[5, 6, 1, 2, 2, 2], [5, 6, 1, 3, 4, 7]]), 2, end=2)
    assert feed["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]
    # Token t is predicted at position t - 1: the first new token (2) at 1, the end itself (3) at 2.
    assert feed["positions"].astype(int).tolist() == [[0, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 0]]


def test_on_policy_batches_are_the_students_own_and_repeatable(tmp_path: Path) -> None:
    model = tiny_llama()
    feeds = tokens(model, (4, 8), (4, 8))
    source = Generated(
        model, lambda number: feeds[number % 2], share=0.5, prompt_tokens=3, new_tokens=4, temperature=1.0, seed=1
    )
    chosen = [source.chosen(number) for number in range(200)]
    assert 70 < sum(chosen) < 130
    own, given = chosen.index(True), chosen.index(False)
    assert source(given) is feeds[given % 2]
    batch = source(own)
    assert batch["input_ids"].shape == (4, 7)
    assert (batch["input_ids"][:, :3] == feeds[own % 2]["input_ids"][:, :3]).all()
    assert (source(own)["input_ids"] == batch["input_ids"]).all()
    shaken(model)
    assert not (source(own)["input_ids"] == batch["input_ids"]).all()


@pytest.mark.parametrize("by", ["student", "teacher"])
def test_distillation_on_generated_texts(by: str, tmp_path: Path) -> None:
    said = {"by": by, "share": 0.5, "prompt_tokens": 3, "new_tokens": 5}
    step = create("reduce step", "distill", {"steps": 8, "losses": {"jsd": 1.0}, "sequences": said}, "test")
    trained, change = step.apply(shaken(tiny_llama()), data(tiny_llama(), tmp_path / "a"))
    again, _ = step.apply(shaken(tiny_llama()), data(tiny_llama(), tmp_path / "b"))
    plain, _ = Distill(steps=8, losses={"jsd": 1.0}).apply(shaken(tiny_llama()), data(tiny_llama(), tmp_path / "c"))
    assert same(trained, again)
    assert not same(trained, plain)
    assert change.details["loss_last"] > 0


def test_the_teachers_texts_are_written_once(tmp_path: Path) -> None:
    model = tiny_llama()
    samples = [{name: value[:1] for name, value in feed.items()} for feed in tokens(model, *[(1, 6)] * 9, padded=False)]
    options = {"share": 0.6, "prompt_tokens": 2, "new_tokens": 4, "temperature": 0.0, "seed": 0, "batch_size": 3}
    first = rewritten(model, samples, tmp_path, **options)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    second = rewritten(model, samples, tmp_path, **options)
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    kept = [np.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, samples, strict=True)]
    assert len(files) > 0
    assert 0 < sum(kept) < 9
    for a, b in zip(first, second, strict=True):
        assert all((a[name] == b[name]).all() for name in a)


@pytest.mark.parametrize(
    ("step", "make", "said"),
    [
        (Distill(sequences=Sequences(by="student")), tiny_bert, "needs a language model"),
        (Distill(sequences=Sequences(by="student"), cache="run", losses={"top_k": 1.0}), tiny_llama, "new each time"),
        (Distill(cache="run"), tiny_llama, "loss logits needs a number per token.*use top_k"),
        (Distill(cache="run", losses={"task": 1.0}), tiny_llama, "nothing to cache"),
        (Finetune(), tiny_bert, "task embedding has no labels.*distill"),
        (Finetune(), two_heads, "task generic has no labels.*distill"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(step: Any, make: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        step.check(make())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_absent_gpu_is_said_before_any_work() -> None:
    with pytest.raises(EnvironmentProblem, match="set device: cpu"):
        Distill(device="cuda").check(tiny_bert())


def labelled(model: Model, folder: Path) -> ReduceContext:
    """The label is the first token's remainder."""
    given = data(model, folder, *((8, 9),) * 8)
    return dataclasses.replace(
        given, training=[{**feed, "labels": feed["input_ids"][:, 0] % 3} for feed in given.training]
    )


@pytest.mark.parametrize("options", [{}, {"dropout": True}, {"precision": "bfloat16", "accumulate": 2}])
def test_finetuning_learns_the_labels_under_fixed_masks(options: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_classifier()
    with torch.no_grad():
        for name, value in model.module.named_parameters():
            if name.endswith("dense.weight"):
                value.view(-1)[::2] = 0
    step = Finetune(steps=40, learning_rate=1e-2, weight_decay=0.1, embeddings=True, **options)
    trained, change = step.apply(model, labelled(model, tmp_path))
    assert change.details["loss_last"] < 0.8 * change.details["loss_first"]
    assert not trained.module.training
    before = dict(model.module.named_parameters())
    for name, value in trained.module.named_parameters():
        if name.endswith("dense.weight"):
            assert bool((value.view(-1)[::2] == 0).all())
            assert int((value == 0).sum()) == int((before[name] == 0).sum())


def test_a_killed_finetuning_with_dropout_goes_on_the_same(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(text: str, done: float, total: float) -> None:
        if done == 7:
            raise Stop

    step = Finetune(steps=12, checkpoint_every=3, dropout=True)
    given = labelled(tiny_classifier(), tmp_path / "a")
    with pytest.raises(Stop):
        step.apply(tiny_classifier(), dataclasses.replace(given, progress=stop))
    resumed, _ = step.apply(tiny_classifier(), given)
    whole, _ = step.apply(tiny_classifier(), labelled(tiny_classifier(), tmp_path / "b"))
    assert same(resumed, whole)


def test_finetuning_a_language_model_needs_no_labels(tmp_path: Path) -> None:
    given = data(tiny_llama(), tmp_path)
    _, change = Finetune(steps=30, learning_rate=1e-2, embeddings=True).apply(tiny_llama(), given)
    assert change.details["loss_last"] < change.details["loss_first"]


def test_finetuning_without_labels_says_which_option_names_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.label"):
        Finetune().apply(tiny_classifier(), data(tiny_classifier(), tmp_path))


def test_a_recipes_labels_reach_the_training_batches(tmp_path: Path) -> None:
    from edgeredux.feeds import make_feeder
    from edgeredux.recipe import DataSection

    def tokenizer(texts: list[str], **_: Any) -> dict[str, Any]:
        rows = [[len(word) for word in text.split()][:5] for text in texts]
        longest = max(map(len, rows))
        mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return {"input_ids": np.array([row + [0] * (longest - len(row)) for row in rows]), "attention_mask": mask}

    model = dataclasses.replace(tiny_classifier(), tokenizer=tokenizer, labels=("even", "odd", "third"))
    lines = ["text,label", *(f"{'w' * (1 + i % 7)} text {i},{('even', 'odd', '2')[i % 3]}" for i in range(200))]
    path = tmp_path / "labelled.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    feeder = make_feeder(model, DataSection(source=str(path), label="label", batch=16), seed=0)
    feeds = feeder.training()
    texts = feeder.data.parts["training"]
    wanted = [{"even": 0, "odd": 1, "2": 2}[example.label] for example in texts]  # type: ignore[index]
    assert np.concatenate([feed["labels"] for feed in feeds]).tolist() == wanted
    assert all(len(feed["labels"]) == len(feed["input_ids"]) for feed in feeds)
    assert not any("labels" in feed for feed in feeder.batches("calibration"))
    given = dataclasses.replace(context(model, tmp_path), teacher=model, training=feeds)
    _, change = Finetune(steps=2).apply(model, given)
    assert change.details["loss_first"] > 0
    with_none = make_feeder(model, DataSection(source=str(path), batch=16), seed=0)
    assert not any("labels" in feed for feed in with_none.training())
