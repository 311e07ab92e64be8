"""`edgeredux prune` as a process and `edgeredux.prune_folder`: whole checkpoints or none, one line for what is wrong."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import Cli
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import edgeredux
from edgeredux.errors import BundleError, DataError, EdgereduxError, RecipeError, StorageError

BLOCK_WEIGHTS = 2 * 32 * 16 + 2 * 16 * 16 + 3 * 32 * 16  # query and output, key and value, the three of the MLP


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 of two blocks in bfloat16, in several files, with tied embeddings and a tokenizer of single bytes."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dense")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.Qwen3Config(
        **sizes, head_dim=8, vocab_size=300, num_hidden_layers=2, max_position_embeddings=64, tie_word_embeddings=True
    )
    transformers.Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="10KB")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {letter: number for number, letter in enumerate(["<end>", *alphabet])}
    made = Tokenizer(models.BPE(words, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>").save_pretrained(folder)
    return folder


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "edgeredux", "prune", *map(str, arguments)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_no_function_is_hidden_by_a_module_of_its_name() -> None:
    """Importing edgeredux.NAME as a module would set the package's attribute NAME to the module."""
    there = {path.stem for path in Path(edgeredux.__file__).parent.iterdir()}
    assert not there & set(edgeredux._LAZY)


def test_json_is_all_that_is_printed(cli: Cli, dense: Path, tmp_path: Path) -> None:
    done = cli("prune", dense, "--out", tmp_path / "out", "--pattern", "2:4", "--texts", 8, "--tokens", 16, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["weights"] == 2 * BLOCK_WEIGHTS
    assert said["zeros"] == BLOCK_WEIGHTS
    assert [block["name"] for block in said["blocks"]] == ["model.layers.0", "model.layers.1"]
    for block in said["blocks"]:
        assert len(block["zeros"]) == len(block["relative_error"]) == len(block["seconds_by_layer"]) == 7
        assert 0 < sum(block["seconds_by_layer"].values()) < block["seconds"]
    module, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert module.dtype == torch.bfloat16
    assert module.lm_head.weight is module.model.embed_tokens.weight
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.Linear) and name != "lm_head":
            assert bool(((part.weight == 0).view(len(part.weight), -1, 4).sum(-1) == 2).all()), name
    assert not (tmp_path / "out.partial").exists()


def test_a_line_a_block_and_nothing_to_do_the_second_time(cli: Cli, dense: Path, tmp_path: Path) -> None:
    arguments = ("prune", dense, "--out", tmp_path / "out", "--method", "magnitude", "--zeros", 0.25)
    done = cli(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    *_, first, second, last = done.stdout.splitlines()
    for number, line in enumerate((first, second)):
        assert line.startswith(f"pruning: model.layers.{number}: ")
        assert line.endswith(f" s, {BLOCK_WEIGHTS // 4:,} of {BLOCK_WEIGHTS:,} weights are zero")
    assert (
        last
        == f"wrote {tmp_path / 'out'}: {BLOCK_WEIGHTS // 2:,} of {2 * BLOCK_WEIGHTS:,} weights in 2 blocks are zero"
    )
    before = contents(tmp_path / "out")
    again = cli(*arguments)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines() == [last]
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--zeros", 1.5), "zeros"),
        (("--method", "wnda"), "did you mean 'wanda'"),
        (("--method", "taylor"), "use magnitude, random, wanda, sparsegpt or alps"),
        (("--data", "nowhere.txt"), "no such file or folder"),
        (("--threads", 0), "threads is 0"),
        (("--exclude", "model.layers.9.*"), "matches no layer"),
        (("--frobnicate",), "frobnicate"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    cli: Cli, dense: Path, tmp_path: Path, arguments: tuple[object, ...], words: str
) -> None:
    done = cli("prune", dense, "--out", tmp_path / "out", *arguments)
    assert done.returncode == 2, done.stdout
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"zeros": 0.0}, RecipeError, "greater than 0"),
        ({"pattern": "3:2"}, RecipeError, "3:2"),
        ({"pattern": "neurons"}, RecipeError, "neurons"),
        ({"pattern": "2:4", "zeros": 0.7}, RecipeError, "2:4"),
        ({"method": {"sparsegpt": {"damp": 1}}}, RecipeError, "damp"),
        ({"texts": 0}, RecipeError, "at least 1"),
        ({"data": ["word"]}, DataError, "too few; at least 16"),
        ({"data": [{"input_ids": torch.zeros(2, 4, dtype=torch.int64), "wrong": torch.zeros(2)}]}, DataError, "wrong"),
        ({"data": [{"input_ids": torch.full((2, 16), 999)}]}, DataError, "attention_mask"),
        (
            {"data": [{"input_ids": torch.full((2, 16), 999), "attention_mask": torch.ones(2, 16)}]},
            EdgereduxError,
            "row 999 of 300",
        ),
    ],
)
def test_bad_options_are_one_error_and_leave_nothing(
    dense: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as found:
        edgeredux.prune_folder(str(dense), tmp_path / "out", **options)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "out").exists()


def test_another_folder_is_left_alone(cli: Cli, dense: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("three years", encoding="utf-8")
    done = cli("prune", dense, "--out", tmp_path / "out", "--method", "magnitude")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "not empty" in done.stderr
    assert contents(tmp_path / "out") == {"thesis.txt": b"three years"}
    with pytest.raises(BundleError, match="not empty"):
        edgeredux.prune_folder(str(dense), dense, method="magnitude")  # nor is the checkpoint pruned over itself


@pytest.mark.parametrize("limit", [20_000, 120_000])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(dense: Path, tmp_path: Path, limit: int) -> None:
    """A limit on the size of a file stands for the disk: below the weights' (30 KB), and below a block's outputs'."""
    arguments = (dense, "--out", tmp_path / "out", "--texts", 64, "--tokens", 64, "--method", "wanda")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    full = subprocess.run(
        command(*arguments),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert full.returncode == 2, full.stderr
    assert len(full.stderr.strip().splitlines()) == 1, full.stderr
    assert "no space left on the disk; free some and type the same command again" in full.stderr
    assert not (tmp_path / "out").exists()
    done = subprocess.run(command(*arguments), capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    whole = edgeredux.prune_folder(str(dense), tmp_path / "whole", texts=64, tokens=64, method="wanda")
    assert whole.zeros == BLOCK_WEIGHTS
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_interrupted_by_hand_is_one_line_and_goes_on(dense: Path, tmp_path: Path) -> None:
    arguments = (dense, "--out", tmp_path / "out", "--texts", 256, "--tokens", 64)
    child = subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
        # A suite that runs in the background ignores the interruption, and so would its children.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "out.partial" / "progress.json").is_file():
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 2, errors
    assert errors == "edgeredux: interrupted; finished steps are kept, the same command goes on where it was\n"
    assert not (tmp_path / "out").exists()
    edgeredux.prune_folder(str(dense), tmp_path / "out", texts=256, tokens=64)
    edgeredux.prune_folder(str(dense), tmp_path / "whole", texts=256, tokens=64)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_damaged_state_says_what_to_do(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeredux.pruning.state import State

    save = State.save

    def broken(self: State, path: Path) -> None:
        save(self, path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(State, "save", broken)
    with pytest.raises(StorageError, match="no space left"):
        edgeredux.prune_folder(str(dense), tmp_path / "out", texts=8, tokens=16)
    monkeypatch.undo()
    done = edgeredux.prune_folder(str(dense), tmp_path / "out", texts=8, tokens=16)
    assert done.zeros == BLOCK_WEIGHTS
