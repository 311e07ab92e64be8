"""Child processes' work done in the test's own process: seconds less a pass, everything else the same."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from typing import Any

import pytest

from edgeredux import isolated


def stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `isolated.call` import and call its function here."""

    def call(function: str, arguments: Mapping[str, Any], **_: Any) -> Any:
        module, _, name = function.partition(":")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of third-party tools, which a child writes to its log
            return getattr(importlib.import_module(module), name)(**arguments)

    monkeypatch.setattr(isolated, "call", call)
