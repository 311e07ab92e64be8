"""A runner's options as the target file gives them, checked against the runner's own dataclass."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from edgeredux.errors import EnvironmentProblem, TargetError, one_line, unknown

T = TypeVar("T")


def read(cls: type[T], options: Mapping[str, Any], where: str) -> T:
    """`cls(**options)`; TargetError naming the allowed options or values otherwise."""
    allowed = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in options:
        if key not in allowed:
            raise TargetError(unknown("option", str(key), allowed, where))
    try:
        return cls(**options)
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "?"
        if first["type"] == "missing":
            raise TargetError(f"{where}: option {place} is required. Options: {', '.join(allowed)}") from problem
        message = first["msg"].removeprefix("Value error, ")
        raise TargetError(one_line(f"{where}: option {place}: {message} (given: {first.get('input')!r})")) from problem
    except TypeError as problem:
        raise TargetError(one_line(f"{where}: {problem}")) from problem


def version(distribution: str, what: str, install: str) -> str:
    """The installed version; EnvironmentProblem ending with the command that installs it otherwise."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise EnvironmentProblem(f"{what} is not installed; install it with: {install}") from None
