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

from edgeredux import loading, roofline
from edgeredux.data import python_docs
from edgeredux.errors import ArtifactError, DataError
from edgeredux.generation import Sampling
from edgeredux.readings import Missing, Reading

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
        # host-cpu is any machine: what its memory allows is not known, and says so.
        assert all(isinstance(side[name], Missing) for name in (roofline.LIMIT, roofline.SHARE))
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

    from edgeredux.roofline import weight_bytes

    graph = onnx.load(bundle / "model.onnx").graph
    sizes = {item.name: len(item.raw_data) for item in graph.initializer}
    tables = {node.input[0] for node in graph.node if node.op_type == "Gather"} & set(sizes)
    others = {name for node in graph.node if node.op_type != "Gather" for name in node.input}
    assert weight_bytes(bundle / "model.onnx") == sum(
        size for name, size in sizes.items() if name not in tables or name in others
    )


def test_what_memory_allows_is_bandwidth_over_bytes(bundle: Path) -> None:
    from edgeredux import target as targets

    phone = targets.load("snapdragon-8-gen-3")  # 76.8 GB/s
    path = bundle / "model.onnx"
    bytes_per_token = roofline.weight_bytes(path) + 80 * 2 * 8 * 4  # one head of 8 numbers, key and value, float32
    found = roofline.readings(path, phone, {"decode_tokens_per_s": Reading(1000.0, "tokens/s", "measured")})
    limit, share = found[roofline.LIMIT], found[roofline.SHARE]
    assert isinstance(limit, Reading)
    assert isinstance(share, Reading)
    assert limit.source == share.source == "estimated"
    assert limit.value == pytest.approx(76.8e9 / bytes_per_token)
    assert share.value == pytest.approx(1000 * bytes_per_token / 76.8e9)
    untimed = roofline.readings(path, phone, {})[roofline.SHARE]
    assert isinstance(untimed, Missing)
    assert roofline.readings(bundle / "config.json", phone, {}) == {}


def test_logits_are_reduced_to_what_quality_reads() -> None:
    from edgeredux.quality import answer, without_logits

    random = np.random.default_rng(0)
    feed = {"input_ids": random.integers(0, 50, (2, 7)), "attention_mask": np.ones((2, 7), np.int64)}
    feed["attention_mask"][0, 5:] = 0
    outputs = {"logits": random.standard_normal((2, 7, 50)).astype(np.float32), "other": np.zeros(3)}
    less = without_logits(outputs, feed)
    assert sum(value.nbytes for value in less.values()) == 10 * 2 * 8  # 4 and 6 predicted tokens, two float64 each
    given, wanted = (answer("causal-lm", each, feed, ("logits",), "mean") for each in (less, outputs))
    np.testing.assert_array_equal(given, wanted)
    assert without_logits({"hidden": outputs["other"]}, feed) == {"hidden": outputs["other"]}


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
