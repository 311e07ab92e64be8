"""edgeredux passes list and run: any file, alone, proven, nothing overwritten."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Cli
from onnx import TensorProto, helper
from tiny_graphs import clean, kinds, save

FLOAT = TensorProto.FLOAT


def halves(path: Path) -> Path:
    """A layer whose two halves of outputs read one half of the inputs each."""
    weight = np.random.default_rng(3).normal(size=(512, 512)).astype(np.float32) / 20
    weight[256:, :256] = weight[:256, 256:] = 0
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    return save(path, [node], {"x": (FLOAT, ["b", "s", 512])}, {"y": (FLOAT, ["b", "s", 512])}, {"w": weight})


def test_every_pass_is_listed(cli: Cli) -> None:
    done = cli("passes", "list", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["tile"]["format"] == "onnx"
    assert rows["tflite_int8_dynamic"]["format"] == "tflite"
    assert all(row["description"] for row in rows.values())


def test_one_pass_on_one_file(cli: Cli, tmp_path: Path) -> None:
    source = halves(tmp_path / "in.onnx")
    before = hashlib.sha256(source.read_bytes()).hexdigest()
    done = cli("passes", "run", "tile", source, "out.onnx", "--set", "minimum_gain=0", "--set", "tokens=64", "--json")
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert said["details"]["parity"]["passed"]
    sizes = [{"y": [1, 1, 512]}, {"y": [2, 7, 512]}, {"y": [16, 16, 512]}]
    # Then the same shapes twice each, with zeros and with loud values.
    assert said["details"]["parity"]["shapes"] == [*sizes, *(size for size in sizes for _ in range(2))]
    assert kinds(tmp_path / "out.onnx") == {"Slice": 2, "MatMul": 2, "Concat": 1}
    assert hashlib.sha256(source.read_bytes()).hexdigest() == before
    again = cli("passes", "run", "tile", source, "out.onnx")
    assert again.returncode == 2
    assert "nothing was overwritten" in again.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.onnx", "out.onnx"]


def test_a_decline_writes_nothing_and_says_why(cli: Cli, tmp_path: Path) -> None:
    done = cli("passes", "run", "tile", clean(tmp_path / "in.onnx"), "out.onnx")
    assert done.returncode == 1
    assert "declined: " in done.stdout
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiel", "in.onnx", "out.onnx"], "did you mean 'tile'"),
        (["tile", "no.onnx", "out.onnx"], "no such file"),
        (["tile", "in.onnx", "out.tflite"], "does not fit"),
        (["tile", "in.onnx", "out.onnx", "--set", "tokens=none"], "tile.tokens"),
        (["tile", "in.onnx", "out.onnx", "--set", "tokens"], "option=value"),
        (["tile", "in.onnx", "no/out.onnx"], "no such folder"),
        (["tile", "in.onnx", "out.onnx", "--data", "no.npz"], "no readable .npz"),
        (["tile", "cut.onnx", "out.onnx"], "cut.onnx"),
    ],
)
def test_mistakes_are_one_line(cli: Cli, tmp_path: Path, arguments: list[str], said: str) -> None:
    source = halves(tmp_path / "in.onnx")
    (tmp_path / "cut.onnx").write_bytes(source.read_bytes()[:9000])
    done = cli("passes", "run", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out.onnx").exists()


def test_inputs_that_cannot_be_made_up_are_asked_for(cli: Cli, tmp_path: Path) -> None:
    weight = np.ones((4, 4), np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Concat", ["m", "r"], ["y"], axis=1)]
    kinds_of = {"x": (FLOAT, ["n", 4]), "r": (FLOAT, ["k", 3])}  # k is n, which no axis name says, and never 1 or 16
    nodes.append(helper.make_node("Reshape", ["r", "seven"], ["always_seven"]))
    arrays = {"w": weight, "seven": np.array([7, 3], np.int64)}
    ways = {"y": (FLOAT, ["n", 7]), "always_seven": (FLOAT, [7, 3])}
    save(tmp_path / "in.onnx", nodes, kinds_of, ways, arrays)
    done = cli("passes", "run", "int8_dynamic", "in.onnx", "out.onnx")
    assert done.returncode == 2
    assert "cannot be executed" in done.stderr
    assert "--data" in done.stderr
    np.savez(tmp_path / "feed.npz", x=np.ones((7, 4), np.float32), r=np.ones((7, 3), np.float32))
    done = cli("passes", "run", "int8_dynamic", "in.onnx", "out.onnx", "--data", "feed.npz")
    assert done.returncode == 0, done.stderr


def test_external_weights_are_read(cli: Cli, tmp_path: Path) -> None:
    model = onnx.load(halves(tmp_path / "in.onnx"))
    onnx.save(model, tmp_path / "big.onnx", save_as_external_data=True, location="big.onnx.data", size_threshold=0)
    done = cli("passes", "run", "tile", "big.onnx", "out.onnx", "--set", "minimum_gain=0", "--set", "tokens=64")
    assert done.returncode == 0, done.stderr
    assert "wrote out.onnx" in done.stdout
    for name in ("big.onnx", "big.onnx.data"):
        (tmp_path / name).unlink()
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"))  # what the pass left alone is in the new file, too


def test_weights_that_no_pass_touches_come_along_from_beside_the_graph(cli: Cli, tmp_path: Path) -> None:
    """A file that kept a reference to weights beside another one would not load, and did not."""
    model = onnx.load(halves(tmp_path / "in.onnx"))
    model.graph.output[0].name = "relu"
    model.graph.node.append(helper.make_node("Identity", ["y"], ["relu"]))
    onnx.save(model, tmp_path / "big.onnx", save_as_external_data=True, location="big.onnx.data", size_threshold=0)
    done = cli("passes", "run", "fold", "big.onnx", "out.onnx")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not onnx.external_data_helper.uses_external_data(onnx.load(tmp_path / "out.onnx").graph.initializer[0])
