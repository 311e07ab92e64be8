"""The whole flow on a small encoder: verdicts, stages, kills, refusals. Each test starts the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import Cli

SCHEMA = Path(__file__).parents[1] / "edgeredux" / "schemas" / "report.schema.json"
RECIPE = """
edgeredux: 1
name: tiny
model: {model}
max_length: 32
threads: 1
data: {{evaluation: 32, calibration: 16, training: 200}}
reduce:
  - structured: {{ffn: 0.5, heads: 0.5}}
  - distill: {{steps: 12, checkpoint_every: 4}}
artifacts:
  onnx-float: {{format: onnx, passes: [fold]}}
  onnx-int8: {{format: onnx, passes: [fold, int8_dynamic]}}
targets:
  host-cpu:
    onnxruntime: {{dense: onnx-float, reduced: onnx-int8, budget: {{size_ratio: 0.9, quality: 0.2}}}}
measure: {{repeats: 6, warmup: 1, sequence: 16}}
"""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with a tokenizer of its own, as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from edgeredux.data import python_docs

    folder = tmp_path_factory.mktemp("models") / "encoder"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(python_docs()[:500], trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=400, max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tmp_path: Path, encoder: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(model=json.dumps(str(encoder))), encoding="utf-8")
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def hashes(out: Path) -> dict[str, str]:
    """Hashes of everything that must come out the same: all but what holds timings and logs."""
    said = read(out / "manifest.json")
    return {
        item["path"]: item["sha256"]
        for item in said["files"]
        if item["path"] not in ("report.json", "report.html", "log.txt")
    }


def test_a_run_passes_and_its_report_keeps_the_contract(cli: Cli, tmp_path: Path, recipe: Path) -> None:
    out = tmp_path / "out"
    done = cli("run", recipe, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    said = read(out / "report.json")
    assert json.loads(done.stdout) == said
    jsonschema.validate(said, read(SCHEMA))
    assert said["passed"] is True
    host = said["targets"][0]
    assert host["name"] == "host-cpu"
    assert host["reduced"]["latency_ms"]["source"] == "measured"
    assert "missing" in host["reduced"]["energy_mj"] or host["reduced"]["energy_mj"]["source"] == "measured"
    assert host["placement"]["reduced"].keys() == {"CPUExecutionProvider"}
    shipped = {item["path"]: item["sha256"] for item in read(out / "manifest.json")["files"]}
    assert shipped["model.onnx"] == host["artifact_sha256"] == shipped["reduced/onnx-int8.onnx"]
    assert not (tmp_path / "out.partial").exists()
    assert str(tmp_path) not in (out / "model.onnx").read_bytes().decode("latin-1")
    again = cli("run", recipe, "--out", out, "--json")
    assert again.returncode == 0
    assert json.loads(again.stdout) == said
    other = cli("run", recipe, "--out", out, "--set", "seed=1")
    assert other.returncode == 2
    assert "recipe" in other.stderr
    assert "choose another --out" in other.stderr
    (out / "model.onnx").write_bytes(b"changed")
    damaged = cli("report", out)
    assert damaged.returncode == 2
    assert "model.onnx" in damaged.stderr


def test_an_impossible_budget_and_energy_without_a_meter_fail(cli: Cli, tmp_path: Path, recipe: Path) -> None:
    place = "targets.host-cpu.onnxruntime.budget"
    overrides = [f"{place}.latency_ms=0.000001", f"{place}.energy_mj=5", "reduce=[]"]
    settings = [part for override in overrides for part in ("--set", override)]
    done = cli("run", recipe, "--out", tmp_path / "out", *settings)
    assert done.returncode == 1, done.stderr
    missed = [line for line in done.stderr.splitlines() if line.startswith("missed:")]
    assert any("latency_ms" in line for line in missed)
    checks = {check["name"]: check for check in read(tmp_path / "out" / "report.json")["targets"][0]["checks"]}
    assert checks["latency_ms"]["passed"] is False
    assert checks["size_ratio"]["passed"] is True
    if "missing" in checks["energy_mj"]["reading"]:
        assert checks["energy_mj"]["passed"] is False
        assert any("energy_mj" in line and "missing" in line for line in missed)


def test_stages_on_their_own_end_where_run_does(cli: Cli, tmp_path: Path, recipe: Path) -> None:
    whole, staged = tmp_path / "whole", tmp_path / "staged"
    assert cli("run", recipe, "--out", whole).returncode == 0
    early = cli("profile", staged)
    assert early.returncode == 2
    for command in (("reduce", recipe, "--out", staged), ("export", staged), ("profile", staged), ("report", staged)):
        done = cli(*command)
        assert done.returncode == 0, (command[0], done.stderr)
    assert hashes(staged) == hashes(whole)
    installed = tmp_path / "installed"
    done = cli("deploy", staged, "--target", "host-cpu", "--to", installed)
    assert done.returncode == 0, done.stderr
    assert read(installed / "install.json")["parity"]["passed"] is True
    assert cli("deploy", staged, "--target", "host-cpu", "--to", installed).returncode == 2
    assert cli("pack", staged, "staged.erpack").returncode == 0
    done = cli("deploy", "staged.erpack", "--target", "host-cpu", "--to", "expanded")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "expanded" / "model.onnx").read_bytes() == (installed / "model.onnx").read_bytes()


def test_a_finished_graph_skips_pytorch_and_says_so(cli: Cli, tmp_path: Path, recipe: Path) -> None:
    assert cli("run", recipe, "--out", tmp_path / "first", "--set", "reduce=[]").returncode == 0
    graph = tmp_path / "first" / "dense" / "onnx-float.onnx"
    before = graph.read_bytes()
    done = cli("run", recipe, "--model", graph, "--out", tmp_path / "second")
    assert done.returncode == 0, done.stderr
    said = read(tmp_path / "second" / "report.json")
    assert any("reduce skipped" in line for line in said["warnings"])
    assert graph.read_bytes() == before


def test_weights_in_a_file_beside_the_graph_travel_with_it(cli: Cli, tmp_path: Path, recipe: Path) -> None:
    import onnx
    import onnxruntime

    assert cli("export", recipe, "--out", tmp_path / "x").returncode == 2  # export goes on where reduce ended
    assert cli("run", recipe, "--out", tmp_path / "first", "--set", "reduce=[]").returncode == 0
    graph = tmp_path / "big.onnx"
    whole = onnx.load(tmp_path / "first" / "dense" / "onnx-float.onnx")
    onnx.save(whole, graph, save_as_external_data=True, location="big.onnx.data", size_threshold=1024)
    only = ("--set", "artifacts.onnx-int8.passes=[]", "--set", "targets.host-cpu.onnxruntime.budget={quality: 0.99}")
    done = cli("run", recipe, "--model", graph, "--out", tmp_path / "second", *only)
    assert done.returncode == 0, done.stderr
    placed = tmp_path / "second" / "reduced" / "onnx-int8" / "big.onnx"
    for path in (placed, tmp_path / "second" / "model.onnx"):
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert (placed.parent / "big.onnx.data").is_file()
    done = cli("deploy", tmp_path / "second", "--target", "host-cpu", "--to", tmp_path / "installed")
    assert done.returncode == 0, done.stderr


FACTORY = """
import torch

def make():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 4))
    return net, torch.randn(2, 3, 8, 8)
"""


def test_any_module_from_a_factory(cli: Cli, tmp_path: Path, recipe: Path) -> None:
    (tmp_path / "mymodels.py").write_text(FACTORY, encoding="utf-8")
    done = cli("run", recipe, "--model", "mymodels:make", "--out", tmp_path / "out", "--set", "reduce=[]")
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "out" / "report.json")["model"]["task"] == "generic"


def started(recipe: Path, out: Path) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-m", "edgeredux", "run", str(recipe), "--out", str(out)]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def seen(out: Path, prefix: str) -> Iterator[Path]:
    steps = out.with_name(out.name + ".partial") / "steps"
    return steps.glob(f"{prefix}*") if steps.is_dir() else iter(())


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_with_the_same_hashes(tmp_path: Path, recipe: Path) -> None:
    assert started(recipe, tmp_path / "whole").wait(600) == 0
    out = tmp_path / "killed"
    stages = (
        ".reference",
        ".reduce-0",
        ".reduce-1",
        ".export-dense",
        ".passes-reduced",
        ".profile-host",
        ".profile-pa",
    )
    killed = []
    for stage in stages:
        process = started(recipe, out)
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if any(seen(out, stage)):
                os.kill(process.pid, signal.SIGKILL)
                killed.append(stage)
                break
            time.sleep(0.005)
        process.wait(60)
    assert len(killed) >= len(stages) - 2, f"killed only in {killed}: the others were over too soon to be seen"
    assert not out.exists()
    assert started(recipe, out).wait(600) == 0
    assert hashes(out) == hashes(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_one_line_and_nothing_half_written(cli: Cli, tmp_path: Path, recipe: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=34m", "tmpfs", str(disk)], check=False)
    if mounted.returncode != 0:
        pytest.skip("this machine does not allow mounting")
    try:
        (disk / "filler").write_bytes(b"\0" * (20 << 20))
        early = cli("run", recipe, "--out", disk / "out")
        assert early.returncode == 2
        assert "are free" in early.stderr
        assert not (disk / "out").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_wheel_works_from_an_empty_folder(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(root)]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next((tmp_path / "dist").glob("*.whl"))
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(site), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)

    def start(*arguments: str) -> str:
        script = "import sys; sys.path.insert(0, sys.argv.pop(1)); from edgeredux.cli import main; main()"
        command = [sys.executable, "-P", "-c", script, str(site), *arguments]
        return subprocess.run(command, cwd=empty, check=True, capture_output=True, text=True).stdout

    assert "quickstart" in start("recipes", "list")
    assert "ethos-u85-512" in start("targets", "list")
    assert (site / "edgeredux" / "schemas" / "report.schema.json").is_file()
    assert any((site / "edgeredux" / "templates").iterdir())
    start("init", "mine.yaml")
    assert (empty / "mine.yaml").is_file()


def test_a_scan_and_a_search_are_shown_everywhere(cli: Cli, tmp_path: Path, recipe: Path) -> None:
    steps = (
        "[{sensitivity: {method: magnitude, grid: [0.5, 0.9]}}, "
        "{prune_until: {limit: {quality: 0.5}, by: 0.3, most: 0.6, allocation: sensitivity}}]"
    )
    arguments = ("run", recipe, "--out", tmp_path / "out", "--set", f"reduce={steps}")
    done = cli(*arguments, "--set", "data.calibration=32")
    assert done.returncode in (0, 1), done.stderr
    assert "sensitivity: mean cosine to dense, one layer alone" in done.stdout
    assert "settings tried" in done.stdout
    found = read(tmp_path / "out" / "report.json")
    jsonschema.validate(found, read(SCHEMA))
    scan, search = found["steps"][:2]
    assert [len(row["zeros"]) for row in scan["details"]["sensitivity"]["layers"]] == [2] * 12
    assert [trial["zeros"] for trial in search["details"]["search"]["tried"]] == [0.0, 0.3, 0.6]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "How much each layer minds" in page
    assert "How far the zeros could go" in page
    told = cli("report", tmp_path / "out", "--json")
    assert json.loads(told.stdout)["steps"][:2] == [scan, search]
    refused = "reduce=[{prune_until: {limit: {quality: 0.9999999}, first: 0.9}}]"
    done = cli("reduce", recipe, "--out", tmp_path / "no", "--set", refused, "--set", "data.calibration=32")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "missed by the first setting" in done.stderr
