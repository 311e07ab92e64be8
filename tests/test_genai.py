"""Folders that onnxruntime-genai loads: the tokens of `edgeredux generate`, also where layers differ in heads."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli
from test_cache_export import SIZES, export
from test_prune_vocabulary import decoder

from edgeredux import caching, genai, loading
from edgeredux.caching import CacheLayer
from edgeredux.errors import ArtifactError, ParityError
from edgeredux.generate import Answer, open_bundle
from edgeredux.generation import Sampling
from edgeredux.passes.onnx.decoder_fusions import DecoderFusions
from edgeredux.pruning.groups import find, remove
from edgeredux.seams import PassContext

onnxruntime_genai = pytest.importorskip("onnxruntime_genai")


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and a fused decoder whose first layer lost half of its heads; plain.onnx beside."""
    import transformers

    folder = tmp_path_factory.mktemp("genai")
    model = decoder("byte BPE")
    size = model.module.config.vocab_size  # type: ignore[union-attr]
    config = transformers.Qwen3Config(**{**SIZES, "vocab_size": size, "bos_token_id": 2, "eos_token_id": 3}, head_dim=8)
    torch.manual_seed(0)
    module = transformers.Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(4 if weight.ndim > 1 else 1)  # random logits far enough apart to be no ties
    remove(module, next(group for group in find(module) if group.kind == "heads"), torch.tensor([1]))
    model = replace(model, module=module, axes=dict.fromkeys(("input_ids", "attention_mask"), ("batch", "sequence")))
    loading.save(model, folder)
    (folder / "plain").mkdir()
    plain, _ = export(replace(model, axes={**model.axes, "logits": ("batch", "sequence", None)}), folder / "plain")
    change = DecoderFusions().run(plain, folder / "model.onnx", PassContext([], folder / "log.txt", folder))
    assert change.changed, change.why
    return folder


def tokens_of(folder: Path, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens by onnxruntime-genai itself."""
    model = onnxruntime_genai.Model(str(folder))
    options = onnxruntime_genai.GeneratorParams(model)
    options.set_search_options(max_length=len(prompt) + count)
    generator = onnxruntime_genai.Generator(model, options)
    generator.append_tokens([prompt])
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)][len(prompt) :]


def same_tokens(source: Path, out: Path) -> None:
    speaker = open_bundle(source, None, 1)
    for prompt in ("The function returns", "If a class"):
        answer = Answer()
        list(speaker.stream(prompt, 24, Sampling(), answer, raw=True))
        made = tokens_of(out, speaker.encode(prompt, raw=True), 24)
        assert [token for token in made if token not in speaker.stops] == answer.tokens
        assert len(set(answer.tokens)) > 4, "the model says one thing all the time, so equal tokens prove nothing"


def test_greedy_tokens_are_those_of_generate(fused: Path, cli: Cli, tmp_path: Path) -> None:
    assert caching.of_onnx(fused / "model.onnx") == (CacheLayer(1, 8, 8), CacheLayer(2, 8, 8))
    done = cli("genai", fused, tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["layers"], said["shared_buffer"], said["tokens"]) == (2, True, 16)
    assert said["tokenizer"].startswith("same but for special tokens")  # its <s> comes from a template
    same_tokens(fused, tmp_path / "out")


def test_a_folder_that_nobody_tried_has_not_passed(fused: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['onnxruntime_genai'] = None\n")
    done = cli("genai", fused, tmp_path / "out")
    assert done.returncode == 1, done.stderr
    assert "not tried: onnxruntime-genai is not installed" in done.stdout + done.stderr
    assert (tmp_path / "out" / genai.CONFIG).is_file()


def test_attention_that_nothing_fused_keeps_a_growing_cache(fused: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(fused, source)
    shutil.copy(fused / "plain" / "model.onnx", source / "model.onnx")
    said = genai.write(source, tmp_path / "out", None, 1)
    assert (said["shared_buffer"], said["tokens"]) == (False, 16)
    same_tokens(source, tmp_path / "out")


def test_other_tokens_leave_no_folder(fused: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = genai.isolated.call

    def other(*args: Any, **kwargs: Any) -> Any:
        said = real(*args, **kwargs)
        return {**said, "tokens": [*said["tokens"][:-1], said["tokens"][-1] + 1]}

    monkeypatch.setattr(genai.isolated, "call", other)
    with pytest.raises(ParityError, match="onnxruntime-genai generates"):
        genai.write(fused, tmp_path / "out", None, 1)
    assert not (tmp_path / "out").exists()


def test_what_onnxruntime_genai_cannot_hold_is_refused(fused: Path, cli: Cli, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="layer 1 keeps keys of 8 numbers and values of 4"):
        genai.check((CacheLayer(2, 8, 8), CacheLayer(2, 8, 4)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for arguments, said in (
        ((fused, tmp_path / "full"), "is not empty"),
        ((fused, tmp_path / "nowhere" / "out"), "there is no such folder"),
        ((tmp_path / "none", tmp_path / "out"), "no folder with model.onnx"),
    ):
        done = cli("genai", *arguments)
        assert done.returncode == 2
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
