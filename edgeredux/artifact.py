"""A model file and what happened to it. Numbers quote its hash, so they cannot drift from the bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from edgeredux.errors import ArtifactError

Format: TypeAlias = Literal["onnx", "tflite"]


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while piece := handle.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@dataclass(frozen=True)
class Change:
    """One line of an artifact's history: which step or pass, what it did or why it declined, and what that changed.

    `details` holds JSON values such as operators before and after, bytes before and after, parity figures.
    """

    step: str
    changed: bool
    why: str
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"step": self.step, "changed": self.changed, "why": self.why, **self.details}


def change_from_json(said: Mapping[str, Any]) -> Change:
    """The Change that `Change.to_json` wrote."""
    details = {name: value for name, value in said.items() if name not in ("step", "changed", "why")}
    return Change(said["step"], said["changed"], said["why"], details)


@dataclass(frozen=True)
class Artifact:
    """An ONNX or TFLite file. `name` is unique in a bundle, `role` says whose function it is."""

    name: str
    role: Literal["dense", "reduced"]
    format: Format
    path: Path
    sha256: str
    size_bytes: int
    history: tuple[Change, ...] = ()
    parity: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, name: str, role: Literal["dense", "reduced"], history: tuple[Change, ...] = ()) -> Artifact:
        """The artifact at `path`; format by suffix. Raises ArtifactError when there is no such file."""
        suffix = path.suffix.lstrip(".")
        if suffix not in ("onnx", "tflite"):
            raise ArtifactError(f"{path}: unknown model format {path.suffix!r}. Allowed: .onnx, .tflite")
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file")
        found = cls(name, role, suffix, path, sha256_file(path), path.stat().st_size, history)  # type: ignore[arg-type]
        if found.data_path is not None:
            found = replace(found, size_bytes=found.size_bytes + found.data_path.stat().st_size)
        return found

    @property
    def data_path(self) -> Path | None:
        """The external weights of an ONNX file beyond 2 GB, beside it with suffix .data; None where there are none."""
        beside = self.path.with_name(self.path.name + ".data")
        return beside if beside.is_file() else None

    def after(self, path: Path, change: Change) -> Artifact:
        """The artifact that a pass made of this one: new bytes, one more line of history."""
        return replace(Artifact.of(path, self.name, self.role), history=(*self.history, change), parity=self.parity)
