"""Where a demo model lies: trained there the first time it is asked for, found there ever after.

$XDG_CACHE_HOME/edgeredux/demo/NAME-HASH (default: ~/.cache). HASH covers the settings, the texts and the versions of
what trains, so a change of any of these makes another model and never touches the one that is there. The folder gets
its name when it is whole; until then everything is in NAME-HASH.partial, where a killed training goes on.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from edgeredux.data import TextData, read_texts
from edgeredux.demo.settings import DEMOS, DemoSettings
from edgeredux.errors import ModelError, StorageError, unknown
from edgeredux.seams import Progress, silent
from edgeredux.workspace import storage_error, sync_folder, sync_path

_MADE_BY = ("torch", "transformers", "tokenizers")
_REVISION = 2  # of how it is trained: raise it when edgeredux/demo/decoder.py would give another model


def check(name: str) -> None:
    """Raise ModelError for a demo that there is none of."""
    if name not in DEMOS:
        raise ModelError(unknown("demo", name, DEMOS, f"model demo:{name}"))


def make(name: str, progress: Progress = silent) -> Path:
    """The Hugging Face folder of a demo model, trained now (minutes) unless it is there already.

    One process trains at a time; another one waits for it. Raises ModelError or StorageError.
    """
    check(name)
    return trained(name, DEMOS[name], progress)


def trained(name: str, settings: DemoSettings, progress: Progress = silent) -> Path:
    """As `make`, for any settings."""
    texts = read_texts(settings.data)
    root = cache_home() / "edgeredux" / "demo"
    final = root / f"{name}-{key(settings, texts)}"
    if final.is_dir():
        return final
    working = final.with_name(f"{final.name}.partial")
    try:
        working.mkdir(parents=True, exist_ok=True)
        with _alone(root / f"{final.name}.lock"):
            if not final.is_dir():
                _build(settings, texts, working, final, progress)
            shutil.rmtree(working, ignore_errors=True)
    except OSError as problem:
        said = storage_error(problem, working)
        if isinstance(said, StorageError):
            said = StorageError(str(said).replace("choose another --out", "set XDG_CACHE_HOME to another folder"))
        raise said from problem
    return final


def cache_home() -> Path:
    """The user's cache folder, as the XDG base directory specification says: a relative path there is not valid."""
    said = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return said if said.is_absolute() else Path.home() / ".cache"


def key(settings: DemoSettings, texts: TextData) -> str:
    """16 hex digits of everything the weights depend on, the processor's kind left out."""
    said = {
        "settings": dataclasses.asdict(settings),
        "texts": texts.sha256,
        "library": sys.version,  # its docstrings and comments are read, too
        "made by": {package: version(package) for package in _MADE_BY},
        "revision": _REVISION,
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _build(settings: DemoSettings, texts: TextData, working: Path, final: Path, progress: Progress) -> None:
    from edgeredux.demo import decoder

    whole = working / "model"
    shutil.rmtree(whole, ignore_errors=True)  # of a run that was killed while it wrote
    whole.mkdir()
    decoder.train_into(whole, settings, texts, working / "checkpoint.safetensors", progress)
    sync_folder(whole)
    whole.rename(final)
    sync_path(final.parent)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
