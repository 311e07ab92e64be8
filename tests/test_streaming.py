"""Pruning block by block from the disk gives the bytes that pruning in memory gives, killed or not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_prune_structured import context
from tiny_models import bert_config, tokens

from edgeredux import loading
from edgeredux.errors import BundleError, EdgereduxError, ModelError, StorageError
from edgeredux.model import Model
from edgeredux.pruning import layers as prunable
from edgeredux.pruning.sparsegpt import inverse_factor
from edgeredux.pruning.streamed import REPORT
from edgeredux.pruning.streaming import prune_checkpoint
from edgeredux.pruning.unstructured import Prune
from edgeredux.seams import Feed
from edgeredux.sources import resolve
from edgeredux.sparsity.patterns import parse

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"vocab_size": 50, "num_hidden_layers": 3, "max_position_embeddings": 64}


def qwen3(folder: Path, dtype: torch.dtype = torch.float32, shard: str = "10KB", **changes: Any) -> Path:
    """A tiny Qwen3 with tied embeddings, in several shards."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**{**SIZES, "head_dim": 8, "tie_word_embeddings": True, **changes})
    module = transformers.Qwen3ForCausalLM(config).to(dtype)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.1 * torch.randn(value.shape))
    module.save_pretrained(folder, max_shard_size=shard)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 64}\n')
    (folder / "LICENSE").write_text("as you like\n")
    return folder


def data(model: Model) -> list[Feed]:
    return tokens(model, (3, 16), (2, 12), (2, 16))


def stream(folder: Path, out: Path, step: Prune, **options: Any) -> dict[str, torch.Tensor]:
    source = resolve(str(folder))
    (folder / "tokenizer_config.json").unlink(missing_ok=True)  # these models have no tokenizer
    model = loading.skeleton(source)
    prune_checkpoint(model, folder, out, step, data(model), **options)
    return read(out)


def read(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def in_memory(folder: Path, step: Prune, tmp_path: Path) -> dict[str, torch.Tensor]:
    model = loading.load(str(folder))
    pruned, _ = step.apply(model, context(model, tmp_path, data(model)))
    return dict(pruned.module.state_dict())


@pytest.mark.parametrize(
    ("method", "pattern"),
    [
        ("magnitude", "unstructured"),
        ("random", "4x4"),
        ("wanda", "unstructured"),
        ("wanda", "2:4"),
        ("sparsegpt", "2:4"),
        ("sparsegpt", "tile:4x4"),
        ("alps", "1x4"),
    ],
)
def test_it_gives_the_bytes_that_pruning_in_memory_gives(method: str, pattern: str, tmp_path: Path) -> None:
    folder = qwen3(tmp_path / "dense")
    step = Prune(method=method, pattern=pattern)
    mine = stream(folder, tmp_path / "pruned", step)
    wanted = in_memory(folder, step, tmp_path)
    assert set(mine) == set(wanted) - {"lm_head.weight"}
    for name, value in mine.items():
        assert torch.equal(value, wanted[name]), name
    said = json.loads((tmp_path / "pruned" / REPORT).read_text())
    counted = {name: zeros for block in said["blocks"] for name, zeros in block["zeros"].items()}
    assert counted == {name: int((mine[f"{name}.weight"] == 0).sum()) for name in counted}
    assert len(counted) == 3 * 7
    for name in counted:
        assert parse(pattern).violation(mine[f"{name}.weight"]) is None
    again = loading.load(str(tmp_path / "pruned"))  # stock transformers reads it
    assert torch.equal(again.module.state_dict()["model.norm.weight"], mine["model.norm.weight"])
    assert not (tmp_path / "pruned.partial").exists()


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_other_architectures(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    if kind == "bert":
        module: Any = transformers.BertModel(bert_config())
    elif kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32)
        module = transformers.GPT2LMHeadModel(config)
    else:
        module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, tie_word_embeddings=False))
    module.save_pretrained(tmp_path / "dense")
    step = Prune(method="sparsegpt", zeros=0.5)
    mine = stream(tmp_path / "dense", tmp_path / "pruned", step)
    wanted = in_memory(tmp_path / "dense", step, tmp_path)
    for name, value in wanted.items():
        found = mine.get(name, mine.get(name.removeprefix("transformer.")))
        if found is not None:
            assert torch.equal(value, found), name
    assert sum(int((value == 0).sum()) for value in mine.values()) >= sum(
        layer.matrix().numel() // 2 for layer in prunable.layers(loading.load(str(tmp_path / "dense")))
    )


def test_bfloat16_is_rounded_before_the_batches_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = qwen3(tmp_path / "dense", torch.bfloat16)
    step = Prune(method="sparsegpt", pattern="2:4")
    mine = stream(folder, tmp_path / "pruned", step)
    store = prunable.Layer.store
    monkeypatch.setattr(prunable.Layer, "store", lambda self, matrix: store(self, matrix.bfloat16().float()))
    wanted = in_memory(folder, step, tmp_path)
    for name, value in mine.items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value.float(), wanted[name]), name


def test_what_is_not_pruned_is_copied_to_the_bit(tmp_path: Path) -> None:
    folder = qwen3(tmp_path / "dense", torch.bfloat16)
    step = Prune(method="wanda", pattern="2:4", exclude=("model.layers.1.*", "model.layers.2.*"))
    mine, dense = stream(folder, tmp_path / "pruned", step, shard_mb=1), read(folder)
    changed = {name for name, value in mine.items() if not torch.equal(value, dense[name])}
    assert len(changed) == 7
    assert all(name.startswith("model.layers.0.") for name in changed)
    for name in ("config.json", "generation_config.json", "LICENSE"):
        assert (tmp_path / "pruned" / name).read_bytes() == (folder / name).read_bytes()


def test_a_block_without_prunable_layers_is_passed_through(tmp_path: Path) -> None:
    folder = qwen3(tmp_path / "dense", num_hidden_layers=4)
    step = Prune(method="sparsegpt", zeros=0.5, exclude=("model.layers.1.*", "model.layers.2.*"))
    mine, wanted = stream(folder, tmp_path / "pruned", step), in_memory(folder, step, tmp_path)
    assert all(torch.equal(value, wanted[name]) for name, value in mine.items())


def test_new_files_are_as_large_as_asked_for(tmp_path: Path) -> None:
    folder = qwen3(
        tmp_path / "dense", vocab_size=50_000, num_hidden_layers=2, hidden_size=32, head_dim=16, intermediate_size=5000
    )
    mine = stream(folder, tmp_path / "pruned", Prune(zeros=0.5), shard_mb=2)
    index = json.loads((tmp_path / "pruned" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in mine.values())
    files = set(index["weight_map"].values())
    assert files == {path.name for path in (tmp_path / "pruned").glob("*.safetensors")}
    assert len(files) > 2
    for file in files:
        sizes = [value.nbytes for value in load_file(tmp_path / "pruned" / file).values()]
        assert sum(sizes) <= 2_000_000 or len(sizes) == 1
    loading.load(str(tmp_path / "pruned"))


def test_only_a_block_or_two_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of the embedding table only rows that are asked for."""
    from edgeredux.pruning.work import Work

    folder = qwen3(tmp_path / "dense", num_hidden_layers=5)
    model = loading.skeleton(resolve(str(folder)))
    seen: list[set[str]] = []
    visit = Work.visit

    def spy(self: Work, *args: Any) -> float | None:
        here = {name for name, value in model.module.named_parameters() if not value.is_meta}
        assert "model.embed_tokens.weight" not in here
        seen.append({name.split(".")[2] for name in here if ".layers." in name})
        return visit(self, *args)

    monkeypatch.setattr(Work, "visit", spy)
    prune_checkpoint(model, folder, tmp_path / "pruned", Prune(method="wanda"), data(model))
    assert len(seen) == 5 * 7
    assert all(len(blocks) == 1 for blocks in seen)
    assert all(value.is_meta for name, value in model.module.named_parameters() if "norm" not in name)


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_streaming import stream
from edgeredux.pruning import block_run, streaming
from edgeredux.pruning.unstructured import Prune

count = 0
def after(function):
    def counted(*args, **options):
        global count
        value = function(*args, **options)
        count += 1
        if count == {stop}:
            os.kill(os.getpid(), signal.SIGKILL)
        return value
    return counted

block_run.Shards.write = after(block_run.Shards.write)
block_run.State.save = after(block_run.State.save)
block_run.write_atomic = after(block_run.write_atomic)
streaming.bundle.publish = after(streaming.bundle.publish)
stream(Path({folder!r}), Path({out!r}), Prune(method={method!r}, pattern="2:4"))
print(count)
"""


@pytest.mark.parametrize("method", ["sparsegpt", "magnitude"])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(method: str, tmp_path: Path) -> None:
    folder = qwen3(tmp_path / "dense", torch.bfloat16)
    stream(folder, tmp_path / "whole", Prune(method=method, pattern="2:4"))
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    # 2 tensors outside the blocks and a progress file; 11 tensors a block, its state (not the last one's) and progress
    # file; the folder's new name. Killed before the first block, between state and progress, in the third block, when
    # all blocks are finished, and when only the working folder is left to delete.
    stops = (2, 15, 27, 12, 1, "none") if method == "sparsegpt" else (30, "none")
    out = tmp_path / "killed"
    for stop in stops:
        script = KILLED.format(
            tests=str(Path(__file__).parent),
            stop=-1 if stop == "none" else stop,
            folder=str(folder),
            out=str(out),
            method=method,
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
        if stop == "none":
            assert done.returncode == 0, done.stderr[-1500:]
        else:
            assert done.returncode == -signal.SIGKILL, done.stderr[-1500:]
            assert out.exists() == (stop == 1)
    assert not out.with_name("killed.partial").exists()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == wanted


def index_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "model.safetensors.index.json").read_text())
    return found


def outside(folder: Path) -> None:
    index = index_of(folder)
    index["weight_map"]["model.norm.weight"] = "../elsewhere.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def elsewhere(folder: Path) -> None:
    index = index_of(folder)
    name, file = next(iter(index["weight_map"].items()))
    index["weight_map"][name] = next(other for other in index["weight_map"].values() if other != file)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def truncated(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-1])


def rewritten(folder: Path, change: Any) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    path = folder / index_of(folder)["weight_map"][name]
    tensors = load_file(path)
    change(tensors, name)
    save_file(tensors, path, {"format": "pt"})


def missing(folder: Path) -> None:
    rewritten(folder, lambda tensors, name: tensors.__setitem__("spare", tensors.pop(name)))
    index = index_of(folder)
    index["weight_map"]["spare"] = index["weight_map"].pop("model.layers.1.mlp.up_proj.weight")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def misshapen(folder: Path) -> None:
    rewritten(folder, lambda tensors, name: tensors.__setitem__(name, tensors[name].T.contiguous()))


def infinite(folder: Path) -> None:
    rewritten(folder, lambda tensors, name: tensors[name].view(-1)[3].fill_(float("inf")))


def integers(folder: Path) -> None:
    rewritten(folder, lambda tensors, name: tensors.__setitem__(name, tensors[name].to(torch.int8)))


def absent(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[0].unlink()


def headless(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": False}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (outside, "names a file outside the folder"),
        (elsewhere, "does not hold tensor .* that the index promises"),
        (truncated, "truncated or corrupted"),
        (missing, "'model.layers.1.mlp.up_proj.weight' is not in the checkpoint"),
        (headless, "'lm_head.weight' is not in the checkpoint"),
        (misshapen, r"has shape \[16, 32\], config.json says \[32, 16\]"),
        (infinite, "has 1 values that are NaN or infinite"),
        (integers, "is of type I8, quantised"),
        (absent, "is missing"),
    ],
)
def test_a_damaged_checkpoint_is_one_clear_error(damage: Any, message: str, tmp_path: Path) -> None:
    folder = qwen3(tmp_path / "dense")
    damage(folder)
    with pytest.raises(ModelError, match=message) as found:
        stream(folder, tmp_path / "pruned", Prune(method="wanda", pattern="2:4"))
    assert "\n" not in str(found.value)
    assert not (tmp_path / "pruned").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "taylor"}, "takes gradients"),
        ({"method": "fisher"}, "takes gradients"),
        ({"allocation": "owl"}, "allocation owl"),
        ({"allocation": "global"}, "allocation global"),
        ({"allocation": "sensitivity"}, "allocation sensitivity"),
        ({"method": "sparsegpt", "reference": "dense"}, "reference dense"),
        ({"pattern": "tile:2x4", "reorder": True}, "reorder"),
        ({"pattern": "3x5"}, "does not fit"),
    ],
)
def test_what_needs_the_whole_model_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = qwen3(tmp_path / "dense")
    with pytest.raises(EdgereduxError, match=message):
        stream(folder, tmp_path / "pruned", Prune(**options))
    assert list(tmp_path.iterdir()) == [folder]


def test_a_damaged_line_of_progress_is_one_clear_error(tmp_path: Path) -> None:
    folder = qwen3(tmp_path / "dense")
    (tmp_path / "pruned.partial").mkdir()
    (tmp_path / "pruned.partial" / "progress.json").write_text('[{"name": 1')
    with pytest.raises(StorageError, match="damaged; delete the folder"):
        stream(folder, tmp_path / "pruned", Prune())


def test_two_stacks_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "dense")
    model = loading.skeleton(resolve(str(tmp_path / "dense")), task="generic")
    with pytest.raises(ModelError, match=r"2 stacks of blocks \(encoder.block, decoder.block\)"):
        prune_checkpoint(model, tmp_path / "dense", tmp_path / "pruned", Prune(zeros=0.5), [])


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = qwen3(tmp_path / "dense")
    out = tmp_path / "pruned"
    stream(folder, out, Prune(zeros=0.5))
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    stream(folder, out, Prune(zeros=0.5))  # finished: nothing to do
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(BundleError, match=r"differs in step\)"):
        stream(folder, out, Prune(zeros=0.25))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="not empty"):
        stream(folder, tmp_path / "mine", Prune(zeros=0.5))


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    folder = qwen3(tmp_path / "dense", shard="1GB")
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="only safetensors"):
        stream(folder, tmp_path / "pruned", Prune(zeros=0.5))


@pytest.mark.parametrize("width", [1, 7, 256, 300, 700])
def test_the_factor_is_that_of_the_papers_three_steps(width: int) -> None:
    """SparseGPT, algorithm 1: Cholesky(H^-1)^T, in float64; below, at and above the size where halving begins."""
    inputs = torch.randn(2 * width + 3, width, generator=torch.Generator().manual_seed(0))
    gram = inputs.T @ inputs
    before = gram.clone()
    h = gram.double() + 0.03 * gram.diagonal().double().mean() * torch.eye(width, dtype=torch.float64)
    wanted = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    found = inverse_factor(gram, 0.03)
    # Float32 has 6e-8; the condition number of such Gram matrices is some 30.
    assert float((found - wanted).norm() / wanted.norm()) < 2e-6
    assert torch.equal(found, found.triu())
    assert torch.equal(gram, before)
