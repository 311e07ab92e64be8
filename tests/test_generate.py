"""`edgeredux generate`: a pruned decoder from recipe to text, as transformers says it; refusals are one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Cli
from test_prune_vocabulary import decoder

from edgeredux import loading
from edgeredux.data import python_docs
from edgeredux.errors import ArtifactError, DataError
from edgeredux.generation import Sampling
from edgeredux.readings import Reading

RECIPE = """
edgeredux: 1
name: words
model: {model}
max_length: 32
threads: 1
data: {{source: words.txt, evaluation: 24, calibration: 16, training: 40}}
reduce: [structured: {{ffn: 0.5, heads: 0.5}}, vocabulary: {{minimum_count: 2}}]
artifacts:
  float: {{format: onnx, cache: true, passes: [fold]}}
targets: {{host-cpu: {{onnxruntime: {{dense: float, reduced: float, budget: {{size_ratio: 0.99}}}}}}}}
measure: {{repeats: 6, warmup: 1, sequence: 16}}
"""


GENERATION = (
    "time_to_first_token_ms",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "cache_bytes_per_token",
    "weight_mb_per_token",
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's bundle of a two-headed decoder, pruned, its vocabulary trimmed."""
    import edgeredux

    folder = tmp_path_factory.mktemp("generate")
    torch.manual_seed(0)
    loading.save(decoder("byte BPE"), folder / "model")
    (folder / "words.txt").write_text("\n".join(python_docs()[:300]), encoding="utf-8")
    said = RECIPE.format(model=json.dumps(str(folder / "model"))).replace("words.txt", str(folder / "words.txt"))
    (folder / "words.yaml").write_text(said, encoding="utf-8")
    report = edgeredux.run(str(folder / "words.yaml"), out=folder / "out")
    assert report.passed
    target = report.targets[0]
    for side in (target.dense, target.reduced):
        assert all(isinstance(side[name], Reading) for name in GENERATION)
    kept = [side["cache_bytes_per_token"] for side in (target.dense, target.reduced)]
    # One layer of two heads of 8 numbers for key and value, float32; one head is left.
    assert [getattr(reading, "value", None) for reading in kept] == [2 * 2 * 8 * 4, 2 * 8 * 4]
    return folder / "out"


def test_text_is_what_transformers_says(bundle: Path, cli: Cli) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(bundle / "pytorch")
    model: Any = loading.load_reduced(bundle / "pytorch", decoder("byte BPE")).module
    for prompt in ("The function returns", "If a class", "x"):
        done = cli("generate", bundle, prompt, "--max-tokens", 20, "--json")
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        ids = tokenizer(prompt)["input_ids"][:-1]  # its tokenizer ends every text; generation goes on
        assert said["prompt_tokens"] == len(ids)
        wanted = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False, pad_token_id=0)[0, len(ids) :]
        kept = [token for token in wanted.tolist() if token != tokenizer.eos_token_id]
        assert said["tokens"] == kept
        assert said["text"] == tokenizer.decode(kept, skip_special_tokens=True)
        assert said["time_to_first_token_ms"] > 0


def test_pieces_stream_to_the_same_text_and_seeds_repeat(bundle: Path) -> None:
    from edgeredux.generate import Answer, open_bundle

    speaker = open_bundle(bundle, None, 1)
    texts = []
    for seed in (1, 1, 2):
        answer = Answer()
        pieces = list(speaker.stream("The", 30, Sampling(temperature=1.5, seed=seed), answer))
        assert "".join(pieces) == answer.text
        texts.append(answer.tokens)
    assert texts[0] == texts[1] != texts[2]


def test_choosing_follows_the_formula() -> None:
    logits = np.array([0.0, 2.0, 2.0, -1.0], np.float32)
    assert Sampling().chooser()(logits) == 1, "ties go to the lower number"
    choose = Sampling(temperature=2.0, top_k=3, seed=0).chooser()
    drawn = np.bincount([choose(logits) for _ in range(4000)], minlength=4) / 4000
    weights = np.exp(logits / 2.0) * (np.arange(4) < 3)
    np.testing.assert_allclose(drawn, weights / weights.sum(), atol=0.03)  # 4 sd of 4000 draws
    with pytest.raises(ArtifactError, match="NaN"):
        choose(np.array([np.nan, 0], np.float32))
    with pytest.raises(DataError, match="temperature"):
        Sampling(temperature=-1)


def test_an_installed_decoder_says_what_it_takes(bundle: Path, cli: Cli, tmp_path: Path) -> None:
    import onnxruntime

    done = cli("deploy", bundle, "--target", "host-cpu", "--to", tmp_path / "there")
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "there" / "install.json").read_text(encoding="utf-8"))["interface"]
    session = onnxruntime.InferenceSession(str(tmp_path / "there" / "model.onnx"))
    assert set(said["inputs"]) == {item.name for item in session.get_inputs()}
    assert set(said["outputs"]) == {item.name for item in session.get_outputs()}


def test_what_a_token_reads_is_all_but_the_table(bundle: Path) -> None:
    import onnx

    from edgeredux.runners.decoding_speed import weight_bytes

    graph = onnx.load(bundle / "model.onnx").graph
    sizes = {item.name: len(item.raw_data) for item in graph.initializer}
    tables = {node.input[0] for node in graph.node if node.op_type == "Gather"} & set(sizes)
    others = {name for node in graph.node if node.op_type != "Gather" for name in node.input}
    assert weight_bytes(bundle / "model.onnx") == sum(
        size for name, size in sizes.items() if name not in tables or name in others
    )


def test_refusals_are_one_line(bundle: Path, cli: Cli, tmp_path: Path) -> None:
    import shutil

    damaged = tmp_path / "damaged"
    shutil.copytree(bundle, damaged)
    (damaged / "tokenizer.json").unlink()
    for arguments, said in (
        ((bundle, "  "), "the prompt is empty"),
        ((bundle, "word " * 5000), "the model sees at most 2048"),
        ((bundle, "x", "--artifact", "dense/float"), "its tokenizer was rewritten"),
        ((bundle, "x", "--artifact", "nothing"), "no ONNX artifact 'nothing'. Allowed: dense/float, reduced/float"),
        ((damaged, "x"), "it has no tokenizer"),
        ((tmp_path / "nowhere", "x"), "no folder with model.onnx"),
    ):
        done = cli("generate", *arguments)
        assert done.returncode == 2
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_cache_is_for_decoders_in_onnx(cli: Cli, tmp_path: Path) -> None:
    done = cli("run", "quickstart", "--set", "artifacts.onnx-float.cache=true", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "cache: true" in done.stderr
    assert not (tmp_path / "out").exists()
