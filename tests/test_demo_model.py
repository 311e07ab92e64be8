"""The demo decoder and its recipe: held-out text stays unseen, the same bytes again, never half there."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import edgeredux
from edgeredux import recipe as recipes
from edgeredux import sources
from edgeredux.artifact import sha256_file
from edgeredux.data import read_texts
from edgeredux.demo import decoder, folder, texts
from edgeredux.demo.settings import DEMOS
from edgeredux.errors import ModelError, RecipeError, StorageError

TINY = dataclasses.replace(DEMOS["llm-tiny"], vocabulary=320, layers=2, steps=6, checkpoint_every=2, threads=1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgeredux" / "demo"


def test_training_reads_the_training_part_alone(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = read_texts("python-docs").parts
    seen: list[str] = []
    whole = decoder.tokenizer
    monkeypatch.setattr(decoder, "tokenizer", lambda said, settings: seen.extend(said) or whole(said, settings))
    model = edgeredux.load(str(folder.trained("tiny", TINY)), max_length=64)
    assert seen == [example.text for example in parts["training"]]
    held_out = {example.text for part in ("calibration", "evaluation") for example in parts[part]}
    assert not held_out & set(seen)
    assert model.task == "causal-lm"
    assert model.module.get_output_embeddings().weight is model.module.get_input_embeddings().weight
    ids = model.tokenizer("def f(é): 日本")["input_ids"]
    assert model.tokenizer.convert_ids_to_tokens([ids[0], ids[-1]]) == ["<s>", "</s>"]
    assert model.tokenizer.decode(ids, skip_special_tokens=True) == "def f(é): 日本"


def test_of_the_library_it_reads_nothing_that_is_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeredux.data import part_of

    said = [f"Sentence number {number} of this file says nothing that another one says." for number in range(40)]
    held_out = "The iterable is consumed until a value is found that is larger than the limit given."
    near = "As ever, the iterable is consumed until a value is found that is larger than zero."
    (tmp_path / "module.py").write_text(
        f'"""{said[0]}\n\n{held_out}\n"""\n# {said[1]}\n\n\ndef f():\n    """{near}"""\n\n    # '
        + "\n    #\n    # ".join(said[2:]),
        encoding="utf-8",
    )
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "module.py").write_text(f'"""{near.replace("iterable", "list")}"""', encoding="utf-8")
    (tmp_path / "no_python.py").write_text("def :", encoding="utf-8")
    monkeypatch.setattr(texts.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    assert texts.library_sentences([held_out]) == [text for text in said if part_of(text) == "training"]


def test_windows_hold_every_text_as_often_as_said(cache: Path) -> None:
    said = [example.text for example in read_texts("python-docs").parts["training"][:30]]
    settings = dataclasses.replace(TINY, repeats=3)
    read = decoder.tokenizer(said, settings)
    made = decoder.windows(read, said[:20], said[20:], settings)
    tokens = np.concatenate([window["input_ids"][0] for window in made])
    texts_again = read.decode(tokens.tolist()).split("</s><s>")
    assert [text.strip("<s>/ ") for text in texts_again[:10]] == [text.strip("<s>/ ") for text in said[20:]]
    counts = [texts_again.count(text) for text in said[:20]]
    assert sum(counts) in (59, 60)  # the last window, not full, is left out
    assert all(window["input_ids"].shape == (1, settings.max_length) for window in made)


def test_a_killed_training_ends_with_the_same_bytes(cache: Path) -> None:
    first = folder.trained("tiny", TINY)
    wanted = {path.name: sha256_file(path) for path in first.iterdir()}
    shutil.rmtree(first)

    def killed(text: str, done: float, total: float) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.trained("tiny", TINY, killed)
    assert not first.exists()
    said: list[float] = []
    assert folder.trained("tiny", TINY, lambda text, done, total: said.append(done)) == first
    assert said == [5, 6], "it goes on after the checkpoint at step 4"
    assert {path.name: sha256_file(path) for path in first.iterdir()} == wanted
    assert not list(cache.glob("*.partial"))
    again: list[float] = []
    folder.trained("tiny", TINY, lambda text, done, total: again.append(done))
    assert again == []


def test_another_seed_is_another_model(cache: Path) -> None:
    other = dataclasses.replace(TINY, seed=1)
    places = [folder.trained("tiny", settings) for settings in (TINY, other)]
    assert places[0] != places[1]
    assert len({sha256_file(place / "model.safetensors") for place in places}) == 2


def test_refusals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"demo 'bert'.*llm"):
        sources.resolve("demo:bert")
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="set XDG_CACHE_HOME"):
        folder.trained("tiny", TINY)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert folder.cache_home() == Path.home() / ".cache"


def test_a_wrong_option_is_said_before_anything_is_trained(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="stepz"):
        edgeredux.run("llm-quickstart", out=tmp_path / "out", settings=["reduce.1.distill.stepz=2"])
    assert not cache.exists()


def test_shipped_recipe_reads() -> None:
    said = recipes.load("llm-quickstart")
    assert said.model == "demo:llm"
    assert [name for name, _ in said.reduce] == ["structured", "distill"]
    assert all(section.cache for section in said.artifacts.values())
    assert said.targets["host-cpu"]["onnxruntime"].budget["perplexity_ratio"] == 1.1


@pytest.mark.slow
def test_whole_way_with_few_steps(cache: Path, cli: object, tmp_path: Path) -> None:
    few = ("--set", "reduce.distill.steps=2", "--set", "measure.repeats=5", "--set", "data.evaluation=32")
    # Speed and quality of a model that has learnt nothing say nothing: what is held is that the way goes to its end.
    loose = "targets.host-cpu.onnxruntime.budget={size_ratio: 0.5, perplexity_ratio: 1.5}"
    done = cli("run", "llm-quickstart", "--model", "demo:llm-tiny", *few, "--set", loose, "--out", tmp_path / "llm")  # type: ignore[operator]
    assert done.returncode == 0, done.stdout + done.stderr
    assert "demo model: training" in done.stdout
    report = json.loads((tmp_path / "llm" / "report.json").read_text(encoding="utf-8"))
    assert [step["name"] for step in report["steps"]][:2] == ["structured", "distill"]
    said = cli("generate", tmp_path / "llm", "The function", "--max-tokens", 8, "--json")  # type: ignore[operator]
    assert said.returncode == 0, said.stderr
    assert 1 <= len(json.loads(said.stdout)["tokens"]) <= 8
