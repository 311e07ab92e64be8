"""What pruning a checkpoint block by block leaves: the folder, and beside its weights what was done to them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeredux.errors import BundleError
from edgeredux.workspace import Workspace

REPORT = "edgeredux_prune.json"


@dataclass(frozen=True)
class BlockLine:
    """One finished block. `seconds` is None where an earlier call finished the whole checkpoint.

    `seconds_by_layer` is what observing and solving a layer took, `seconds` has the forward pass and the disk too.
    """

    name: str
    weights: int
    zeros: dict[str, int]  # by layer
    relative_error: dict[str, float] = field(default_factory=dict)  # by layer, where the Gram matrix was taken
    seconds: float | None = None
    seconds_by_layer: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Streamed:
    """A pruned checkpoint folder and what was done block by block."""

    folder: Path
    blocks: tuple[BlockLine, ...]
    files: tuple[str, ...]

    @property
    def weights(self) -> int:
        """Weights of all pruned layers."""
        return sum(block.weights for block in self.blocks)

    @property
    def zeros(self) -> int:
        """How many of them are zero."""
        return sum(sum(block.zeros.values()) for block in self.blocks)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "folder": str(self.folder),
            "files": list(self.files),
            "weights": self.weights,
            "zeros": self.zeros,
            "blocks": [asdict(block) for block in self.blocks],
        }


def report_text(identity: Mapping[str, Any], lines: Sequence[BlockLine], files: Sequence[str]) -> str:
    """What was done, without times: the same run, the same bytes."""
    blocks = [{name: value for name, value in asdict(line).items() if not name.startswith("seconds")} for line in lines]
    return json.dumps({"identity": identity, "blocks": blocks, "files": list(files)}, indent=1, sort_keys=True) + "\n"


def finished(out: Path, identity: Mapping[str, Any]) -> Streamed:
    """What stands in `out`. Raises BundleError when that was made of something else."""
    try:
        said = json.loads((out / REPORT).read_text(encoding="utf-8"))
        found, lines = said["identity"], tuple(BlockLine(**line) for line in said["blocks"])
        files = tuple(said["files"])
    except (ValueError, KeyError, TypeError) as problem:
        raise BundleError(f"{out}: {REPORT} is damaged; choose another folder") from problem
    if found != identity:
        changed = ", ".join(sorted(key for key in {*found, *identity} if found.get(key) != identity.get(key)))
        raise BundleError(f"{out}: holds a checkpoint pruned otherwise (differs in {changed}); choose another folder")
    left = out.with_name(f"{out.name}.partial")  # a kill came between the two
    if left.is_dir():
        with Workspace(out, dict(identity)) as workspace:
            workspace.remove()
    return Streamed(out, lines, files)
