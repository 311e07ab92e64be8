"""Install from a bundle what one target needs, and prove in the new place that it answers as it did before.

The installed folder holds the target's artifact, what its compiler made, the tokenizer and config, and install.json
(hashes, runtime, how to feed it). It is all there or not there. On this machine, or on a device that a runner of the
target reaches (deploy_device.py); any other target is refused with what would be needed.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeredux import bundle, caching, deploy_device, parity, registry
from edgeredux import target as targets
from edgeredux.artifact import sha256_file
from edgeredux.errors import BundleError, EnvironmentProblem
from edgeredux.execute import execute
from edgeredux.seams import Feed, Progress, Reaches, Tolerance, silent
from edgeredux.shipping import packed

# Same bytes on the same machine: only the thread count may change the order of additions.
_SAME = Tolerance("the same bytes under the same runtime; only the order of additions may differ", atol=1e-4, rtol=1e-4)
_TOP_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def deploy(folder: Path, target: str, to: Path, host: str = "", progress: Progress = silent) -> dict[str, Any]:
    """Install `target`'s reduced artifact into `to` (which must not exist, or be empty). Raises BundleError.

    `folder`: a bundle, or the packed file of one, which is expanded for the time of the installation. `host`: the
    device's address where the target is another device (ssh: [USER@]HOST[:PORT]); `to` is a folder there then, relative
    paths below the home folder.
    """
    if not packed.is_packed(folder):
        return _install(folder, target, to, host, progress)
    chosen = _choose(target, host)
    if chosen.reaches is not None:
        with tempfile.TemporaryDirectory(prefix="edgeredux-") as name:
            packed.unpack(folder, Path(name, "bundle"))
            return _install(Path(name, "bundle"), target, to, host, progress)
    _check_free(to)
    to.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.absolute().parent, prefix=".edgeredux-") as name:
        packed.unpack(folder, Path(name, "bundle"))
        return _install(Path(name, "bundle"), target, to, host, progress)


@dataclass(frozen=True)
class _Chosen:
    """Where a target's artifact is to be installed: here, or where `reaches` leads."""

    device: targets.Target
    runtime: targets.RuntimeSection
    reaches: Reaches | None


def _choose(target: str, host: str) -> _Chosen:
    device = targets.load(target)
    here = [runtime for runtime in device.runtimes if runtime.runner in ("onnxruntime", "litert")]
    if here and not host:
        return _Chosen(device, here[0], None)
    for runtime in device.runtimes:
        runner = registry.create("runner", runtime.runner, {}, f"target {device.name}")
        if isinstance(runner, Reaches):
            return _Chosen(device, runtime, runner)
    if host:
        raise EnvironmentProblem(f"target {device.name}: none of its runners reaches a device; --host is of no use")
    raise EnvironmentProblem(
        f"target {device.name}: it is another device, and none of its runners reaches it; on this machine it can only "
        f"be simulated: edgeredux profile BUNDLE --target {device.name}"
    )


def _install(folder: Path, target: str, to: Path, host: str, progress: Progress) -> dict[str, Any]:
    manifest = bundle.read_manifest(folder)
    bundle.verify(folder, manifest)
    chosen = _choose(target, host)
    device, runner = chosen.device, chosen.runtime.runner
    if manifest["stage"] == "reduced":
        raise BundleError(f"{folder}: not exported yet; first: edgeredux export {folder}")
    named = manifest["recipe"]["targets"]
    uses = named.get(device.name) or named.get(target)  # a recipe names a target of its own by its file
    if not uses or runner not in uses:
        raise BundleError(f"{folder}: its recipe has no artifact for target {device.name} under {runner}")
    name = uses[runner]["reduced"]
    item = next((a for a in manifest["artifacts"] if a["role"] == "reduced" and a["name"] == name), None)
    if item is None:
        raise BundleError(f"{folder}: it holds no reduced artifact {name!r}; first: edgeredux export {folder}")
    feeds = _feeds(folder, manifest, device.name)
    said = {"target": device.name, "runtime": runner, "sha256": item["sha256"]}
    if chosen.reaches is not None:
        place = chosen.reaches.reach(chosen.runtime.options, host)
        with tempfile.TemporaryDirectory(prefix="edgeredux-") as scratch:
            fresh = Path(scratch, "installed")
            fresh.mkdir()
            installed = _copy(folder, item, fresh)
            said |= {"file": installed.name, "interface": _interface(manifest, installed)}
            before = execute(folder / item["path"], feeds, log=Path(scratch, "log.txt"))
            wanted = deploy_device.Wanted(installed, feeds, before, said)
            return deploy_device.install(place, wanted, to.as_posix(), Path(scratch), progress)
    _check_free(to)
    fresh = to.absolute().with_name(f".{to.name}.installing")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        installed = _copy(folder, item, fresh)
        log = fresh.with_name(fresh.name + ".log")
        before = execute(folder / item["path"], feeds, log=log)
        after = execute(installed, feeds, log=log, threads=2)
        log.unlink(missing_ok=True)
        agreement = parity.compare(before, after, _SAME)
        said |= {"file": installed.name, "interface": _interface(manifest, installed), "parity": agreement}
        said["files"] = bundle.list_files(fresh)
        (fresh / "install.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        bundle.publish(fresh, to.absolute())
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return {**said, "passed": bool(agreement["passed"]), "how": deploy_device.how(agreement, len(feeds))}


def _interface(manifest: dict[str, Any], installed: Path) -> dict[str, Any]:
    """The manifest's, with the cache that a decoder's own file takes and gives."""
    said = dict(manifest["interface"])
    cache = caching.of_onnx(installed) if installed.suffix == ".onnx" else ()
    if cache:
        said["inputs"] = [*said["inputs"], "position_ids", *caching.past_shapes(cache)]
        said["outputs"] = [*said["outputs"], *caching.present_names(cache)]
    return said


def _check_free(to: Path) -> None:
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise BundleError(f"{to}: is not empty; nothing is overwritten, choose another --to")


def _copy(folder: Path, item: dict[str, Any], fresh: Path) -> Path:
    source = folder / item["path"]
    installed = fresh / f"model.{item['format']}"
    shutil.copyfile(source, installed)
    beside = source.with_name(source.name + ".data")
    if beside.is_file():  # an ONNX file names its external weights, so they keep their name
        installed = fresh / source.name
        shutil.move(fresh / f"model.{item['format']}", installed)
        shutil.copyfile(beside, fresh / beside.name)
    if sha256_file(installed) != item["sha256"]:
        raise BundleError(f"{installed}: the copy has other bytes than the bundle")
    for name in _TOP_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, fresh / name)
    return installed


def _feeds(folder: Path, manifest: dict[str, Any], target: str) -> list[Feed]:
    import numpy as np

    path = folder / "samples" / f"{target}.npz"
    if not path.is_file():
        raise BundleError(f"{folder}: it holds no sample inputs for {target}; make it anew with this version")
    with np.load(path, allow_pickle=False) as archive:
        count = 1 + max(int(name.split("/")[0]) for name in archive.files)
        return [
            {name.split("/", 1)[1]: archive[name] for name in archive.files if name.startswith(f"{index:03d}/")}
            for index in range(count)
        ]
