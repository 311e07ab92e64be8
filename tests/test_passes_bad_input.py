"""Files that are wrong or odd through every pass: refused, declined or right, in one line, and never a traceback."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import bad_graphs
import numpy as np
import onnx
import pytest
from conftest import Cli
from tflite_files import HARM, File, blocky, damaged

from edgeredux import isolated, one_pass

SETTINGS = {"fix_shapes": ["shapes={b: 2}"]}
HERE = str(Path(__file__).parent)


def outcomes(paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Path, Any]:
    """By file and pass, what was said; a signal's number where a file killed its process."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([HERE, *filter(None, [os.environ.get("PYTHONPATH")])]))
    (tmp_path / "told").mkdir()
    arguments = {"paths": [str(path) for path in paths], "settings": SETTINGS, "place": str(tmp_path / "told")}
    found = isolated.call("bad_graphs:forked", arguments, log=tmp_path / "log", what="fuzz")
    return {Path(path): said for path, said in found.items()}


def one_line(said: str) -> None:
    assert "\n" not in said
    assert not said.startswith(("TRACEBACK", "InternalError")), said
    assert len(said) < 700


def tflite(path: Path) -> None:
    """Two layers, the first with zeros in blocks."""
    file = File()
    x = file.tensor("x", [1, 64])
    y = file.dense(file.dense(x, blocky(128, 64, 4, 0.1)), blocky(32, 128, 4, 1.0))
    file.write(path, x, y)


def test_wrong_onnx_files_are_refused_by_every_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {}
    (tmp_path / "secret").write_bytes(bytes(64 * 96 * 4))  # there, and not to be read
    for index, (what, (change, said)) in enumerate(bad_graphs.REFUSED.items()):
        folder = tmp_path / str(index)
        folder.mkdir()
        model = bad_graphs.good(folder / "bad.onnx")
        change(model)
        (folder / "bad.onnx").write_bytes(model.SerializeToString())
        words[folder / "bad.onnx"] = (what, said)
    content = (tmp_path / "0" / "bad.onnx").read_bytes()
    for index, length in enumerate((0, 1, 100, len(content) // 2, len(content) - 1)):
        folder = tmp_path / f"cut{index}"
        folder.mkdir()
        (folder / "bad.onnx").write_bytes(content[:length])
        words[folder / "bad.onnx"] = (f"{length} bytes of it", "bad.onnx")
    passes = {row["name"] for row in one_pass.names() if row["format"] == "onnx"}
    for path, found in outcomes(list(words), tmp_path, monkeypatch).items():
        what, wanted = words[path]
        assert isinstance(found, dict), f"{what}: signal {found}"
        assert set(found) == passes
        for name, said in found.items():
            one_line(said)
            assert said.startswith("ArtifactError: "), f"{what}, {name}: {said}"
            assert wanted in said, f"{what}, {name}: {said}"


def test_odd_onnx_files_are_right_or_declined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {}
    for index, (what, change) in enumerate(bad_graphs.ODD.items()):
        path = tmp_path / f"odd{index}.onnx"
        model = bad_graphs.good(path)
        change(model)
        onnx.checker.check_model(model)
        onnx.save(model, path)
        paths[path] = what
    found = outcomes(list(paths), tmp_path, monkeypatch)
    for path, said_by in found.items():
        assert isinstance(said_by, dict), f"{paths[path]}: signal {said_by}"
        for name, said in said_by.items():
            one_line(said)
            assert said.startswith(("changed", "declined: ", "rolled back: ")), f"{paths[path]}, {name}: {said}"
    plain = found[tmp_path / "odd0.onnx"]
    changing = {name for name, said in plain.items() if said == "changed"}
    # Else all of this shows little: the graph is one that most passes have something to do on.
    assert {"dead_structure", "fix_shapes", "fp16", "int8_dynamic", "int8_static", "int8_weights"} <= changing
    assert not any(said.startswith("rolled back") for said in plain.values())


@pytest.mark.slow
def test_flipped_bytes_never_end_in_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad_graphs.good(tmp_path / "in.onnx")
    tflite(tmp_path / "in.tflite")
    paths = []
    random = np.random.default_rng(7)
    for suffix, count in ((".onnx", 12), (".tflite", 40)):
        content = np.frombuffer((tmp_path / f"in{suffix}").read_bytes(), np.uint8)
        # Not among the weights, where a flip is just another number: both formats keep the rest at their ends.
        places = np.r_[0 : min(2000, len(content)), max(0, len(content) - 2000) : len(content)]
        for index in range(count):
            broken = content.copy()
            broken[random.choice(places, 3)] = random.integers(0, 256, 3)
            paths.append(tmp_path / f"{index}{suffix}")
            paths[-1].write_bytes(broken.tobytes())
    found = outcomes(paths, tmp_path, monkeypatch)
    for path, said_by in found.items():
        if isinstance(said_by, int):  # a child of ours ends like this, and `isolated` makes one line of it
            assert said_by in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE), path
            continue
        for name, said in said_by.items():
            one_line(said)
            assert said.startswith(("changed", "declined: ", "rolled back: ", "ArtifactError: ")), (
                f"{path} {name} {said}"
            )
    assert sum(isinstance(said, dict) for said in found.values()) > len(found) / 2


def test_damaged_tflite_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{how.replace(' ', '-')}.tflite" for how in HARM]
    for path, how in zip(paths, HARM, strict=True):
        tflite(path)
        damaged(path, how)
    for path, said_by in outcomes(paths, tmp_path, monkeypatch).items():
        for said in said_by.values() if isinstance(said_by, dict) else ():
            one_line(said)
            assert said.startswith("ArtifactError: "), f"{path.stem}: {said}"


@pytest.mark.parametrize(("what", "code"), [("cycle", 2), ("nothing odd", 1)])
def test_the_command_line_says_one_line(cli: Cli, tmp_path: Path, what: str, code: int) -> None:
    model = bad_graphs.good(tmp_path / "bad.onnx")
    change = bad_graphs.REFUSED[what][0] if code == 2 else bad_graphs.ODD[what]
    change(model)
    (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
    done = cli("passes", "run", "gelu", "bad.onnx", "out.onnx")
    assert done.returncode == code
    said = done.stderr if code == 2 else done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert len(said.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.onnx"]
