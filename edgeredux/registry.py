"""Names to classes, from each plug-in folder's TABLE, imported only when asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from edgeredux.errors import EdgereduxError, InternalError, RecipeError, one_line, unknown

# What a recipe calls them -> the packages whose TABLE lists them.
KINDS: dict[str, tuple[str, ...]] = {
    "reduce step": ("edgeredux.pruning", "edgeredux.distillation", "edgeredux.sparse_training"),
    "exporter": ("edgeredux.export",),
    "pass": ("edgeredux.passes.onnx", "edgeredux.passes.tflite"),
    "runner": ("edgeredux.runners",),
    "meter": ("edgeredux.meters",),
}


def table(kind: str) -> dict[str, str]:
    """Every name of this kind and the "module:Class" that implements it. Imports no heavy library."""
    merged: dict[str, str] = {}
    for package in KINDS[kind]:
        merged.update(importlib.import_module(package).TABLE)
    return merged


def check_name(kind: str, name: str, where: str, error: type[EdgereduxError] = RecipeError) -> None:
    """Raise `error` listing the allowed names when `name` is none of them."""
    names = table(kind)
    if name not in names:
        raise error(unknown(kind, name, names, where))


def find(kind: str, name: str, where: str, error: type[EdgereduxError] = RecipeError) -> type[Any]:
    """The class called `name`; this imports its module."""
    check_name(kind, name, where, error)
    module_name, _, attribute = table(kind)[name].partition(":")
    loaded = getattr(importlib.import_module(module_name), attribute, None)
    if not isinstance(loaded, type):
        raise InternalError(f"{kind} {name!r}: {module_name} has no class {attribute!r}")
    return loaded


def create(
    kind: str, name: str, options: Mapping[str, Any], where: str, error: type[EdgereduxError] = RecipeError
) -> Any:
    """The plug-in configured with `options`. Unknown or wrong options raise `error` naming what is allowed."""
    import dataclasses

    from pydantic import ValidationError

    cls = find(kind, name, where, error)
    allowed = [f.name for f in dataclasses.fields(cls) if f.init] if dataclasses.is_dataclass(cls) else []
    for key in options:
        if key not in allowed:
            raise error(unknown("option", str(key), allowed, f"{where}: {name}"))
    try:
        return cls(**options)
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join([name, *(str(part) for part in first["loc"])])
        said = first["msg"].removeprefix("Value error, ")
        # A check over several options has no place of its own, and its input is all of them in pydantic's wrapping.
        given = f" (given: {first.get('input')!r})" if first["loc"] else ""
        raise error(one_line(f"{where}: {place}: {said}{given}")) from problem
    except (TypeError, ValueError) as problem:
        raise error(one_line(f"{where}: {name}: {problem}")) from problem
