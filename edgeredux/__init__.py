"""edgeredux: takes a model that works and makes it fit a device, with a verdict that can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edgeredux.jobs import run as run
    from edgeredux.loading import load as load
    from edgeredux.oneline import distill as distill
    from edgeredux.oneline import prune as prune
    from edgeredux.oneline_choosing import prune_until as prune_until
    from edgeredux.oneline_choosing import sensitivity as sensitivity
    from edgeredux.oneline_folder import prune_folder as prune_folder
    from edgeredux.oneline_training import sparse_train as sparse_train
    from edgeredux.report import Report as Report

# Nothing heavy is imported before one of these is used.
_LAZY = {
    "run": "edgeredux.jobs",
    "load": "edgeredux.loading",
    "prune": "edgeredux.oneline",
    "prune_until": "edgeredux.oneline_choosing",
    "sensitivity": "edgeredux.oneline_choosing",
    "prune_folder": "edgeredux.oneline_folder",
    "distill": "edgeredux.oneline",
    "Report": "edgeredux.report",
    "sparse_train": "edgeredux.oneline_training",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'edgeredux' has no attribute {name!r}")
