"""Where edgeredux keeps what can be fetched again: $XDG_CACHE_HOME/edgeredux or ~/.cache/edgeredux."""

from __future__ import annotations

import os
from pathlib import Path


def of(name: str) -> Path:
    """The folder `name` in the user's cache; it need not exist."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The specification of these folders says that a relative path is to be taken for none.
    base = Path(given) if given.startswith("/") else Path.home() / ".cache"
    return base / "edgeredux" / name
