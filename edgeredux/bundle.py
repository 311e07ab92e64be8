"""The output folder: all there or not there.

DIR/manifest.json     hashes of every file, versions, recipe, what was done; written last
DIR/report.json       the verdict for programs          DIR/report.html   the verdict for people
DIR/model.onnx        the primary reduced artifact, with config and tokenizer beside it (Optimum's layout)
DIR/pytorch/          the reduced PyTorch model         DIR/recipe.yaml   the recipe with every default filled in
DIR/dense/ DIR/reduced/   every artifact by name        DIR/targets/T/    what a target's compiler made
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias

from edgeredux.artifact import sha256_file
from edgeredux.errors import BundleError
from edgeredux.workspace import storage_error, sync_folder, sync_path

Stage: TypeAlias = Literal["reduced", "exported", "profiled"]
STAGES: tuple[Stage, ...] = ("reduced", "exported", "profiled")
MANIFEST = "manifest.json"
REPORT = "report.json"
PAGE = "report.html"
# Files of the reduced model's folder that belong at the bundle's top, beside model.onnx.
BESIDE = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "generation_config.json",
    "chat_template.jinja",
)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle. Raises BundleError when the folder is none."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder; make one with edgeredux run RECIPE --out {folder}")
    if not path.is_file():
        raise BundleError(f"{folder}: no edgeredux bundle (it has no {MANIFEST})")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["schema"] != 1 or manifest["stage"] not in STAGES:
            raise ValueError(f"schema {manifest['schema']}, stage {manifest['stage']}")
        for item in manifest["files"]:
            _inside(folder, item["path"])
        for item in manifest["artifacts"]:
            _inside(folder, item["path"])
    except (UnicodeDecodeError, ValueError, KeyError, TypeError) as problem:
        raise BundleError(f"{path}: damaged or of another version of edgeredux ({type(problem).__name__})") from problem
    return dict(manifest)


def _inside(folder: Path, name: str) -> Path:
    """A manifest's path within its bundle; refuses one that leads out of it."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise BundleError(f"{folder}: the manifest names a path outside the bundle: {name!r}")
    return folder.joinpath(*pure.parts)


def verify(folder: Path, manifest: Mapping[str, Any], only: Iterable[str] | None = None) -> None:
    """Raise BundleError when a file that the manifest lists is absent or has other bytes."""
    wanted = None if only is None else set(only)
    for item in manifest["files"]:
        if wanted is not None and item["path"] not in wanted:
            continue
        path = _inside(folder, item["path"])
        if not path.is_file() or path.is_symlink():
            raise BundleError(f"{folder}: {item['path']} is missing; make the bundle anew in another --out")
        if sha256_file(path) != item["sha256"]:
            raise BundleError(
                f"{folder}: {item['path']} is not the file that was written (its SHA-256 differs); "
                "make the bundle anew in another --out"
            )


def list_files(folder: Path) -> list[dict[str, Any]]:
    """Path, sha256 and size of every file in a folder but the manifest, sorted by path."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST:
            found.append({"path": name, "sha256": sha256_file(path), "size_bytes": path.stat().st_size})
    return found


def place(source: Path, destination: Path) -> None:
    """Put a file into a bundle being assembled: a hard link where possible (no bytes moved), else a copy."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, destination)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, destination)


def place_folder(source: Path, destination: Path) -> None:
    """`place` for every file below a folder."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            place(path, destination / path.relative_to(source))


def check_out(out: Path) -> None:
    """Raise when `out` cannot become a bundle: not empty and none, or its parent not writable."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise BundleError(f"{out}: is a file or a link, not a folder; choose another --out")
    if out.is_dir() and not (out / MANIFEST).is_file() and any(out.iterdir()):
        raise BundleError(f"{out}: is not empty and no edgeredux bundle; nothing is overwritten, choose another --out")
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        raise BundleError(f"{out}: {parent} cannot be written; choose another --out")


def publish(folder: Path, out: Path) -> None:
    """Rename a whole folder to `out`; where a bundle stands there, exchange the two and delete the old one."""
    try:
        sync_folder(folder)
        if out.is_dir() and any(out.iterdir()):
            _exchange(folder, out)
            shutil.rmtree(folder)
        else:
            folder.rename(out)
        sync_path(out.parent)
    except OSError as problem:
        raise storage_error(problem, out) from problem


def _exchange(a: Path, b: Path) -> None:
    """Swap two folders in one step (renameat2, RENAME_EXCHANGE), so that `b` is never absent."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "renameat2") and libc.renameat2(-100, os.fsencode(a), -100, os.fsencode(b), 2) == 0:
            return
    old = b.with_name(f".{b.name}.old")
    b.rename(old)
    a.rename(b)
    old.rename(a)
