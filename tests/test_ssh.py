"""Runner ssh against a real OpenSSH server: the same answers as here, and what happens when things break."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from ssh_server import CUT_IN_PUT, Server, keygen, serve

from edgeredux.agent import process
from edgeredux.errors import ArtifactError, EnvironmentProblem, StorageError, TargetError
from edgeredux.execute import execute
from edgeredux.measure import machine_noise
from edgeredux.readings import Missing, Reading
from edgeredux.runners.ssh import Ssh
from edgeredux.seams import Feed, ProfileJob

RNG = np.random.default_rng(6)
HOSTILE = "a b'c\"d; $(touch INJECTED) `touch INJECTED`&|>x.onnx"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "sshd"
    folder.mkdir()
    yield from serve(folder)


def network(path: Path, width: int = 64) -> Path:
    """y = Relu(x [1, 32] @ w [32, width])."""
    weights = RNG.normal(size=(32, width)).astype(np.float32) / 6
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, width])
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weights, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def feeds(count: int = 3) -> list[Feed]:
    return [{"x": RNG.normal(size=(1, 32)).astype(np.float32)} for _ in range(count)]


def job(
    tmp_path: Path, artifacts: dict[str, Path], given: list[Feed], options: dict[str, Any], repeats: int = 8
) -> ProfileJob:
    return ProfileJob(
        artifacts=artifacts,
        latency_feeds=dict.fromkeys(artifacts, given),
        quality_feeds=dict.fromkeys(artifacts, given),
        options=options,
        hardware={},
        threads=1,
        repeats=repeats,
        warmup=1,
        scratch=tmp_path / "scratch",
        log=tmp_path / "log.txt",
    )


def left_there(server: Server) -> list[str]:
    device = server.folder / "device"
    return [path.name for path in (device / "jobs").glob("*")] if device.is_dir() else []


def check_answers(profile: Any, path: Path, given: list[Feed], tmp_path: Path) -> None:
    wanted = execute(path, given, log=tmp_path / "log.txt")
    assert len(profile.outputs) == len(wanted)
    for have, want in zip(profile.outputs, wanted, strict=True):
        # The same runtime on the same processor; only the optimiser's order of additions may differ.
        np.testing.assert_allclose(have["y"], want["y"], rtol=1e-5, atol=1e-6)


def test_profile_equals_the_reference_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    dense, reduced = network(tmp_path / "dense.onnx"), network(tmp_path / "reduced.onnx", 16)
    given = feeds()
    options = server.options()
    Ssh().check(options)
    found = Ssh().profile(job(tmp_path, {"b": dense, "a": reduced}, given, options))  # not by the alphabet
    for label, path in (("b", dense), ("a", reduced)):
        profile = found[label]
        check_answers(profile, path, given, tmp_path)
        latency, memory = profile.readings["latency_ms"], profile.readings["memory_mb"]
        assert isinstance(latency, Reading)
        assert latency.source == "measured"
        assert "over ssh" in latency.how
        assert "interleaved with" in latency.how
        assert latency.n == 8
        assert isinstance(memory, Reading)
        assert memory.value > 0
        assert profile.placement["CPUExecutionProvider"] >= 1
        assert profile.machine["cores"] >= 1
        energy = profile.readings["energy_mj"]
        assert isinstance(energy, Reading) or (isinstance(energy, Missing) and energy.reason)
    assert left_there(server) == []


def test_hostile_names_are_only_names(server: Server, tmp_path: Path) -> None:
    path = network(tmp_path / HOSTILE.replace("/", ""))
    given = feeds()
    folder = server.folder / "de vice'; $(touch INJECTED)"
    found = Ssh().profile(job(tmp_path, {"dense": path}, given, server.options(folder=str(folder))))
    check_answers(found["dense"], path, given, tmp_path)
    assert not [*tmp_path.rglob("INJECTED"), *Path.home().glob("INJECTED"), *Path.cwd().glob("INJECTED")]
    for host in ("-oProxyCommand=touch INJECTED", "a;b", "a b", ""):
        with pytest.raises((TargetError, EnvironmentProblem)):
            Ssh().check(server.options(host=host))


def test_wrong_host_key_is_refused(server: Server, tmp_path: Path) -> None:
    other = keygen(tmp_path / "other")
    (server.folder / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {other}", encoding="ascii")
    with pytest.raises(EnvironmentProblem, match="host key is another than the known one") as changed:
        Ssh().check(server.options())
    assert "ssh-keygen -R" in str(changed.value)
    assert "\n" not in str(changed.value)
    (server.folder / "known_hosts").write_text("", encoding="ascii")
    with pytest.raises(EnvironmentProblem, match="host key is not known"):
        Ssh().check(server.options())
    assert not (server.folder / "device").exists()


def test_what_is_not_there_is_said_in_one_line(server: Server, tmp_path: Path) -> None:
    for options, said in (
        (server.options(python="/no/python3"), "install Python 3.8"),
        (server.options(key=str(server.folder / "host")), "does not let us in"),
        (server.options(port=1), "is the device on"),
    ):
        with pytest.raises(EnvironmentProblem, match=said) as problem:
            Ssh().check(options)
        assert "\n" not in str(problem.value)


def test_connection_cut_within_the_push_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    path = network(tmp_path / "large.onnx", 40_000)  # 5 MB
    size = path.stat().st_size
    python = server.device_python(CUT_IN_PUT)
    given = feeds(1)
    found = Ssh().profile(job(tmp_path, {"dense": path}, given, server.options(python=python)))["dense"]
    check_answers(found, path, given, tmp_path)
    assert (server.folder / "mark-put").exists()
    assert found.facts["connections_lost"] == 1
    # The 3 MB that had arrived are not sent again; the agent and the feeds are less than 100 kB.
    assert size < found.facts["sent_bytes"] <= 2 * size + 200_000 - 3_000_000
    assert left_there(server) == []


def test_connection_cut_within_the_run(server: Server, tmp_path: Path) -> None:
    path = network(tmp_path / "a.onnx")
    python = server.device_python(
        "if 'wait' in words and 'start' not in words and first('wait'):\n    pass\nelif 'wait' in words and first('again'):\n    cut()\n    sys.exit(1)\n"
    )
    given = feeds()
    found = Ssh().profile(job(tmp_path, {"dense": path}, given, server.options(python=python)))["dense"]
    check_answers(found, path, given, tmp_path)
    assert (server.folder / "mark-again").exists()
    assert found.facts["connections_lost"] == 1
    assert left_there(server) == []


def test_killed_agent(server: Server, tmp_path: Path) -> None:
    path = network(tmp_path / "a.onnx")
    # The second `wait` finds the supervisor dead: it is killed just before, more than a minute before it could end.
    python = server.device_python(
        "import json\n"
        "if 'wait' in words:\n"
        f"    for said in Path({str(server.folder)!r}, 'device', 'jobs').glob('*/out/pid.json'):\n"
        "        os.killpg(json.loads(said.read_text())['pid'], signal.SIGKILL)\n"
        "        first('killed')\n"
    )
    with pytest.raises(EnvironmentProblem, match="agent was killed") as problem:
        Ssh().profile(job(tmp_path, {"dense": path}, feeds(), server.options(python=python), repeats=10_000_000))
    assert (server.folder / "mark-killed").exists()
    assert "\n" not in str(problem.value)
    assert left_there(server) == []


def test_stop_ends_the_models_process_when_the_supervisor_is_gone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    script = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid, flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], text=True, start_new_session=True, **pipes) as leader:
        assert leader.stdout is not None
        model = int(leader.stdout.readline())
        identity = {"pid": leader.pid, "born": process._born(leader.pid), "boot": process._boot()}
        (tmp_path / "out" / "pid.json").write_text(json.dumps(identity), encoding="utf-8")
        leader.kill()
    assert process._born(model)
    assert process.stop(tmp_path) == {"state": "killed"}
    assert not process._born(model)


def test_device_that_started_anew(server: Server, tmp_path: Path) -> None:
    path = network(tmp_path / "a.onnx")
    python = server.device_python(
        "import json\n"
        "if 'start' in words and first('boot'):\n"
        "    subprocess.run([sys.executable, *words], check=True)\n"
        f"    (said,) = Path({str(server.folder)!r}, 'device', 'jobs').glob('*/out/pid.json')\n"
        "    found = json.loads(said.read_text())\n"
        "    os.killpg(found['pid'], signal.SIGKILL)\n"
        "    said.write_text(json.dumps({**found, 'boot': 'another'}))\n"
        "    sys.exit(0)\n"
    )
    given = feeds()
    found = Ssh().profile(job(tmp_path, {"dense": path}, given, server.options(python=python)))["dense"]
    assert (server.folder / "mark-boot").exists()
    check_answers(found, path, given, tmp_path)


def test_what_was_left_on_the_device_is_said(server: Server, tmp_path: Path) -> None:
    path, given = network(tmp_path / "a.onnx"), feeds()
    options = server.options(python=server.device_python("if 'remove' in words:\n    cut()\n    sys.exit(1)\n"))
    found = Ssh().profile(job(tmp_path, {"dense": path}, given, options))["dense"]
    check_answers(found, path, given, tmp_path)
    assert "was left on the device" in found.facts["left_there"]
    (tmp_path / "no.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(ArtifactError, match=r"cannot load it.*was left on the device"):
        Ssh().profile(job(tmp_path, {"dense": tmp_path / "no.onnx"}, given, options))


def test_results_that_are_none_are_refused(tmp_path: Path) -> None:
    from edgeredux.remote import result
    from edgeredux.remote.job import read_feeds

    alone = {"runtime": "r", "memory_mb": 1.0, "how": "h", "placement": {"CPU": 1}}
    shared = {
        "samples_ms": {"a": [1.0, 2.0]},
        "machine": {"cpu_model": "m", "cores": 4, "governor": "g"},
        "energy": {"a": {"missing": "no sensor"}},
        "python": "3.8.0",
    }
    good = {"alone": {"a": alone}, "together": shared, "outputs": {"a": ["00.npz", "0"]}}
    read = result.read(json.dumps(good).encode(), ["a"], 2, "host")
    assert read.together.machine.facts() == shared["machine"]
    for part, wrong in (
        ("together", {**shared, "samples_ms": {"a": [1.0]}}),  # a sample less than asked for
        ("together", {**shared, "samples_ms": {"a": [1.0, float("nan")]}}),
        ("together", {**shared, "samples_ms": {"a": [1.0, -2.0]}}),
        ("together", {**shared, "energy": {"a": {"mj": 0, "n": 20, "how": "h"}}}),
        ("together", {**shared, "machine": {"cpu_model": "m", "cores": "many"}}),
        ("alone", {"a": {**alone, "memory_mb": None}}),
        ("alone", {}),
        ("outputs", {"b": ["00.npz", "0"]}),
    ):
        with pytest.raises(EnvironmentProblem, match="the agent's result"):
            result.read(json.dumps({**good, part: wrong}).encode(), ["a"], 2, "host")
    for content in (b"", b"[]", b"[" * 100_000, b'"error"'):
        with pytest.raises(EnvironmentProblem, match="the agent's result is none"):
            result.read(content, ["a"], 2, "host")
    for content in (b"", b"PK\x03\x04 and no more", b"\x93NUMPY"):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(ArtifactError, match="cannot be read"):
            read_feeds(tmp_path / "a.npz")


def test_readings_of_one_device_are_not_reused_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step's key, with a plan of which only what the key reads is there."""
    from edgeredux import profile_stage

    class Keys:
        def __init__(self) -> None:
            self.found: list[Any] = []

        def step(self, name: str, key: Any, build: Any) -> Path:
            self.found.append(key)
            raise KeyError(name)

    said = MagicMock()
    said.artifact.return_value.shapes = {}
    use = MagicMock(runner=Ssh(), runtime=MagicMock(options={}), entry="board", unavailable=None)
    keys = Keys()
    for host in ("pi@board:22", "pi@board:22", "pi@other", "eve@board:22"):
        monkeypatch.setenv("EDGEREDUX_SSH_HOST", host)
        with pytest.raises(KeyError):
            profile_stage._profile(said, use, said, said, said, keys)  # type: ignore[arg-type]
    first, again, *others = [key["device"] for key in keys.found]
    assert first == again
    assert len({first, *others}) == 3


def test_no_space(server: Server, tmp_path: Path) -> None:
    path = network(tmp_path / "large.onnx", 40_000)
    python = server.device_python(
        "import resource\nif 'put' in words:\n    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
    )
    with pytest.raises(StorageError, match="no space left on the device") as problem:
        Ssh().profile(job(tmp_path, {"dense": path}, feeds(), server.options(python=python)))
    assert "\n" not in str(problem.value)
    assert left_there(server) == []


def test_a_file_that_is_no_model(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "no.onnx"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ArtifactError, match="cannot load it"):
        Ssh().profile(job(tmp_path, {"dense": path}, feeds(), server.options()))
    assert left_there(server) == []


def test_tflite_and_sparse_weights_that_the_devices_delegate_would_misread(server: Server, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")
    from tflite_files import mlp, unguarded

    good = mlp(tmp_path / "m.tflite")
    bare, given = unguarded(good, tmp_path / "bare.tflite"), [{"x": RNG.normal(size=(1, 256)).astype(np.float32)}]
    found = Ssh().profile(job(tmp_path, {"dense": good}, given, server.options()))["dense"]
    check_answers(found, good, given, tmp_path)
    assert found.placement == {"XNNPACK": 2}
    with pytest.raises(ArtifactError, match="read the sparse weights of 2 operators as dense ones"):
        Ssh().profile(job(tmp_path, {"dense": bare}, given, server.options()))
    options = server.options(resolver="builtin_without_default_delegates")
    found = Ssh().profile(job(tmp_path, {"dense": bare}, given, options))["dense"]
    check_answers(found, good, given, tmp_path)
    assert found.placement == {"built-in": 2}
    assert left_there(server) == []


def test_what_goes_to_a_device_needs_python_3_8_and_the_standard_library_alone() -> None:
    import ast

    from edgeredux import agent
    from edgeredux.remote.job import _ALONG

    allowed = {*sys.stdlib_module_names, "edgeredux"}
    for path in (*Path(agent.__file__).parent.glob("*.py"), *(Path(str(m.__file__)) for m in _ALONG)):
        tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))
        for node in tree.body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.partition(".")[0] in allowed, f"{path.name} imports {name}"
                assert not name.startswith("edgeredux.") or name.split(".")[1] in (
                    "agent",
                    "machine",
                    "delegates",
                    "rounds",
                )


def test_sensors_that_freeze_wrap_or_jump() -> None:
    from edgeredux.agent.energy import Sensor, Silent, watts

    counter = Sensor("counter", lambda: 0.0, True, wraps_j=10.0)
    # 2 W by definition, the counter starting again at 10 J twice on the way.
    steady = [(t / 4, (t / 2) % 10.0) for t in range(45)]
    assert watts(counter, steady, 11.0) == pytest.approx(2.0)
    with pytest.raises(Silent, match="does not say where it wraps"):
        watts(counter._replace(wraps_j=None), steady, 11.0)
    with pytest.raises(Silent, match="more than its range"):
        watts(counter, [*steady[:30], (9.0, -50.0)], 9.0)
    with pytest.raises(Silent, match="stood still"):
        watts(counter, [(0.0, 5.0)], 2.0)
    with pytest.raises(Silent, match="20 are needed"):
        watts(counter, steady[:19], 2.0)
    # A power sensor: 1 W for half of the time and 3 W for the other.
    power = Sensor("power", lambda: 0.0, False)
    assert watts(power, [(t / 10, 1.0 + 2.0 * (t % 2)) for t in range(41)], 4.0) == pytest.approx(2.0)


def test_sensors_are_found_in_sys(tmp_path: Path) -> None:
    from edgeredux.agent import condition, energy

    def put(place: str, text: str) -> None:
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")

    with pytest.raises(energy.Silent, match=r"INA.*battery.*RAPL"):
        energy.find(tmp_path)
    put("class/powercap/intel-rapl:0/name", "package-0")
    put("class/powercap/intel-rapl:0/energy_uj", "2500000")
    put("class/powercap/intel-rapl:0/max_energy_range_uj", "262143328850")
    found = energy.find(tmp_path)
    assert (found.name, found.read(), found.wraps_j) == ("RAPL package-0", 2.5, 262143.32885)
    put("class/power_supply/BAT0/type", "Battery")
    put("class/power_supply/BAT0/status", "Discharging")
    put("class/power_supply/BAT0/current_now", "-500000")
    put("class/power_supply/BAT0/voltage_now", "4000000")
    assert energy.find(tmp_path).read() == pytest.approx(2.0)  # 0.5 A at 4 V
    put("class/hwmon/hwmon3/name", "ina3221")
    for rail, label in ((1, "VDD_IN"), (2, "VDD_CPU")):
        put(f"class/hwmon/hwmon3/in{rail}_label", label)
        put(f"class/hwmon/hwmon3/in{rail}_input", "5000")
        put(f"class/hwmon/hwmon3/curr{rail}_input", str(800 * rail))
    found = energy.find(tmp_path)
    assert (found.name, found.read()) == ("INA power monitor VDD_IN", pytest.approx(4.0))  # 5000 mV x 800 mA
    put("devices/platform/soc/soc:firmware/get_throttled", "50005")
    put("devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "1500000")
    put("class/hwmon/hwmon3/name", "ina230")
    for rail in (1, 2):  # two rails and no word which feeds the board
        put(f"class/hwmon/hwmon3/power{rail}_input", "1000000")
        put(f"class/hwmon/hwmon3/in{rail}_label", "")
    assert energy.find(tmp_path).name == "battery BAT0"
    state = condition.now(tmp_path)
    assert state["firmware_throttling"] == ["under-voltage", "throttled"]
    assert state["clock_mhz"] == {"cpu0": 1500.0}
    assert machine_noise(condition.between({"firmware_throttling": []}, state), 1) == (
        "the firmware says: under-voltage, throttled",
    )
