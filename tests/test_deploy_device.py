"""deploy to another device: over a real OpenSSH server; what is in its place there is whole, proven and hash-checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ssh_server import CUT_IN_PUT, Server, serve
from test_ssh import HOSTILE, network

from edgeredux import jobs
from edgeredux.artifact import sha256_file
from edgeredux.deploy import deploy
from edgeredux.errors import BundleError, EdgereduxError, EnvironmentProblem, StorageError, TargetError
from edgeredux.remote import files

RECIPE = """
edgeredux: 1
name: tiny
model: {model}
threads: 1
data: {{calibration: 8, evaluation: 16}}
artifacts:
  plain: {{format: onnx}}
targets:
  {board}:
    ssh: {{dense: plain, reduced: plain}}
measure: {{repeats: 5, warmup: 1, threads: 1}}
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "sshd"
    folder.mkdir()
    yield from serve(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported bundle for target board, whose file is beside it."""
    folder = tmp_path_factory.mktemp("bundle")
    board(folder, {})
    network(folder / "net.onnx", 40_000)  # 5 MB
    rows = np.random.default_rng(0).normal(size=(48, 32)).astype(np.float32)
    np.savez(folder / "rows.npz", x=rows)
    text = RECIPE.format(model=json.dumps(str(folder / "net.onnx")), board=folder / "board.yaml")
    (folder / "recipe.yaml").write_text(
        text.replace("data: {", f"data: {{source: {folder}/rows.npz, "), encoding="utf-8"
    )
    jobs.reduce(str(folder / "recipe.yaml"), out=folder / "out")
    jobs.export(folder / "out")
    return folder / "out"


def board(folder: Path, options: dict[str, Any], runner: str = "ssh") -> str:
    path = folder / "board.yaml"
    said = {
        "name": "board",
        "description": "a device",
        "runtimes": [{"runner": runner, "format": "onnx", "options": options}],
    }
    path.write_text(json.dumps(said), encoding="utf-8")
    return str(path)


def install(made: Path, server: Server, to: str, address: str = "", **options: Any) -> dict[str, Any]:
    return deploy(made, board(made.parent, server.options(**options)), Path(to), address)


def test_installed_there_as_in_the_bundle(made: Path, server: Server, tmp_path: Path) -> None:
    to = server.folder / "opt" / HOSTILE.replace("/", "")
    address = f"127.0.0.1:{server.port}"
    done = install(made, server, str(to), address, host="nowhere.invalid", port=1)
    assert done["passed"], done["how"]
    said = json.loads((to / "install.json").read_text(encoding="utf-8"))
    assert said["parity"]["max_abs"] <= 1e-4
    assert said["parity"]["samples"] == 4
    assert "ONNX Runtime" in said["answered_by"]
    assert {path.name for path in to.iterdir()} == {"install.json", *(item["path"] for item in said["files"])}
    for item in said["files"]:
        assert sha256_file(to / item["path"]) == item["sha256"]
    (there,) = [path for path in to.iterdir() if path.suffix == ".onnx"]
    assert there.read_bytes() == (made / "model.onnx").read_bytes()
    assert [path.name for path in to.parent.iterdir()] == [to.name]  # nothing on the way was left
    assert not list((server.folder / "device" / "jobs").glob("*"))
    assert not [*tmp_path.rglob("INJECTED"), *Path.home().glob("INJECTED"), *Path.cwd().glob("INJECTED")]
    with pytest.raises(BundleError, match="is not empty"):
        install(made, server, str(to))


def test_a_file_in_the_place_and_a_wrong_address_are_refused(made: Path, server: Server, tmp_path: Path) -> None:
    (server.folder / "taken").write_text("mine", encoding="utf-8")
    with pytest.raises(BundleError, match="is not empty"):
        install(made, server, str(server.folder / "taken"))
    assert (server.folder / "taken").read_text(encoding="utf-8") == "mine"
    with pytest.raises(EnvironmentProblem, match="is the device on"):
        install(made, server, str(server.folder / "a"), "127.0.0.1:1")
    for host in ("-oProxyCommand=touch INJECTED", "a;b", "$(touch INJECTED)"):
        with pytest.raises(TargetError):
            install(made, server, str(server.folder / "a"), host)
    with pytest.raises(EnvironmentProblem, match="none of its runners reaches a device"):
        deploy(made, "host-cpu", tmp_path / "a", "127.0.0.1")
    (server.folder / "known_hosts").write_text("", encoding="ascii")
    with pytest.raises(EnvironmentProblem, match="host key is not known"):
        install(made, server, str(server.folder / "a"))
    assert not list(server.folder.glob("a*.installing*"))
    assert not (server.folder / "a").exists()


CUT_AFTER_COMMIT = (
    "if 'commit' in words and words[-1].endswith('there') and first('commit'):\n"
    "    subprocess.run([sys.executable, *words])\n"
    "    cut()\n"
    "    sys.exit(1)\n"
)


def test_lost_connections_are_no_more_than_pauses(made: Path, server: Server) -> None:
    python = server.device_python(CUT_IN_PUT + CUT_AFTER_COMMIT)
    done = install(made, server, str(server.folder / "there"), python=python)
    assert (server.folder / "mark-commit").exists()
    assert done["passed"]
    assert done["lost"] == 2
    # What had arrived before is not sent again.
    assert done["sent_bytes"] < (made / "model.onnx").stat().st_size + 2_200_000
    assert (server.folder / "there" / "install.json").is_file()
    assert not list(server.folder.glob("there.installing*"))


def test_a_connection_that_stays_lost_leaves_nothing_in_place_and_the_same_command_goes_on(
    made: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "TRIES", 2)
    body = (
        CUT_IN_PUT
        + "if Path({0!r}, 'mark-put').exists() and not Path({0!r}, 'mended').exists():\n    cut()\n    sys.exit(1)\n"
    )
    python = server.device_python(body.format(str(server.folder)))
    with pytest.raises(files.GaveUp, match="goes on from there"):
        install(made, server, str(server.folder / "there"), python=python)
    assert not (server.folder / "there").exists()
    (server.folder / "mended").touch()
    done = install(made, server, str(server.folder / "there"), python=python)
    assert done["passed"]
    assert done["sent_bytes"] < (made / "model.onnx").stat().st_size - 2_000_000


FULL = "import resource\nif 'put' in words:\n    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
DAMAGED = (
    "if 'put' in words:\n"
    "    data = sys.stdin.buffer.read()\n"
    "    subprocess.run([sys.executable, *words], input=data.replace(b'MatMul', b'MatMuI'))\n"
    "    sys.exit(0)\n"
)


@pytest.mark.parametrize(
    ("body", "error", "said"),
    [(FULL, StorageError, "no space left on the device"), (DAMAGED, EdgereduxError, "arrived with other bytes")],
    ids=["full", "damaged"],
)
def test_what_cannot_be_installed_is_not_there_at_all(
    made: Path,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    error: type[Exception],
    said: str,
) -> None:
    monkeypatch.setattr(files, "TRIES", 2)
    with pytest.raises(error, match=said) as problem:
        install(made, server, str(server.folder / "there"), python=server.device_python(body))
    assert "\n" not in str(problem.value)
    assert not (server.folder / "there").exists()
    assert not (server.folder / "there.installing").exists()
