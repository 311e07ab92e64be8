"""The benchmark of pruning from the disk sees what it has to judge: memory, a kill, wrong zeros, changed and missing tensors."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from stream import made, proof, watched

import edgeredux

SHAPE = {
    **made.QWEN3_1_7B,
    "vocab_size": 5000,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    home = tmp_path_factory.mktemp("stream")
    weights = made.checkpoint(home / "dense", SHAPE, 1, seed=0)
    assert weights == 5000 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32 + 2 * 16) + 32
    made.texts(home / "texts.txt", 8)
    edgeredux.prune_folder(
        str(home / "dense"), home / "pruned", zeros=0.5, data=str(home / "texts.txt"), texts=8, tokens=64
    )
    return home / "dense", home / "pruned", home / "texts.txt"


def test_the_full_shape_has_more_than_one_and_a_half_billion_weights() -> None:
    import transformers

    with torch.device("meta"):
        module = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**made.QWEN3_1_7B))
    assert sum(value.numel() for value in module.parameters()) == 1_720_574_976


def test_a_right_checkpoint_passes(folders: tuple[Path, Path, Path]) -> None:
    dense, pruned, texts = folders
    assert proof.compare(dense, pruned, 0.5) == []
    # Random weights know nothing: the loss is near that of guessing among 5,000 tokens.
    assert proof.loads(pruned, texts.read_text()[:500]) == pytest.approx(torch.tensor(5000.0).log().item(), abs=0.5)
    assert proof.digests(dense, ["model.layers.1"]) != proof.digests(pruned, ["model.layers.1"])
    assert len(proof.digests(dense, ["model.layers.1"])) == 11


@pytest.mark.parametrize("damage", ["a zero less", "a norm", "missing", "another type", "not finite"])
def test_a_wrong_one_does_not(folders: tuple[Path, Path, Path], tmp_path: Path, damage: str) -> None:
    dense, pruned, _ = folders
    shutil.copytree(pruned, tmp_path / "wrong")
    path = tmp_path / "wrong" / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.mlp.down_proj.weight"
    if damage == "a zero less":
        tensors[name].view(-1)[int((tensors[name] == 0).view(-1).int().argmax())] = 1.0
    elif damage == "a norm":
        name = "model.norm.weight"
        tensors[name][3] += 1
    elif damage == "missing":
        del tensors[name]
    elif damage == "another type":
        tensors[name] = tensors[name].half()
    else:
        tensors[name].view(-1)[int((tensors[name] != 0).view(-1).int().argmax())] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    wrong = proof.compare(dense, tmp_path / "wrong", 0.5)
    assert len(wrong) == 1
    assert wrong[0].startswith(f"{name}: ")


def test_memory_is_that_of_all_processes_at_their_highest() -> None:
    """One that holds 100 MB and lets go starts another that holds 200 MB: both count, whatever is free by then."""
    inner = "import time; held = bytearray(200_000_000); time.sleep(1)"
    script = (
        "import subprocess, sys, time; held = bytearray(100_000_000); time.sleep(1); del held\n"
        f"subprocess.run([sys.executable, '-c', {inner!r}])"
    )
    found = watched.run([sys.executable, "-c", script], {})
    assert found.returncode == 0
    assert len(found.high_water) == 2
    # An interpreter alone holds some 10 MB.
    assert 300_000_000 < found.peak < 360_000_000


def test_a_kill_reaches_the_whole_group(tmp_path: Path) -> None:
    ready, late = tmp_path / "ready", tmp_path / "late"
    inner = f"import pathlib, time; pathlib.Path({str(ready)!r}).touch(); time.sleep(2); pathlib.Path({str(late)!r}).touch()"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    found = watched.run([sys.executable, "-c", script], {}, ready.exists)
    assert found.returncode == -9
    import time

    time.sleep(2.5)
    assert not late.exists()
