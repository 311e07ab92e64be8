"""The error tree. Every message is one line: what was wrong, where, and what is allowed.

    EdgereduxError                 could not run: exit code 2
    ├── RecipeError                a recipe or a --set override says something unknown or impossible
    ├── TargetError                a target file says something unknown or impossible
    ├── ModelError                 a model, weight file or checkpoint cannot be used
    ├── DataError                  the data is empty, unreadable or has the wrong columns
    ├── ArtifactError              an ONNX or TFLite file cannot be read, written or executed
    ├── ParityError                two things that must agree do not
    ├── EnvironmentProblem         a runtime, compiler or device is missing; says the command that installs it
    ├── BundleError                an output folder is not what the command needs, or belongs to another recipe
    ├── StorageError               disk full, folder not writable
    └── InternalError              a bug of ours: please report it

A missed budget is no error: it is a verdict (exit code 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EdgereduxError(Exception):
    """Base of everything that ends with exit code 2 and one line on stderr."""


class RecipeError(EdgereduxError):
    """A recipe or an override says something unknown or impossible."""


class TargetError(EdgereduxError):
    """A target file says something unknown or impossible."""


class ModelError(EdgereduxError):
    """A model, weight file or checkpoint cannot be used."""


class DataError(EdgereduxError):
    """The data is empty, unreadable or has the wrong columns."""


class ArtifactError(EdgereduxError):
    """An ONNX or TFLite file cannot be read, written or executed."""


class ParityError(EdgereduxError):
    """Two things that must agree do not."""


class EnvironmentProblem(EdgereduxError):
    """A runtime, compiler, meter or device is missing; the message ends with the command that helps."""


class BundleError(EdgereduxError):
    """An output folder is not what the command needs, or belongs to another recipe."""


class StorageError(EdgereduxError):
    """The disk is full or the folder cannot be written."""


class InternalError(EdgereduxError):
    """A bug of ours, with the place of its log."""


def one_line(text: object, limit: int = 600) -> str:
    """The text on one line, white space folded, cut at `limit` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def unknown(what: str, given: str, allowed: Iterable[str], where: str) -> str:
    """The message for a name that does not exist: where, the nearest one, the allowed ones."""
    names = sorted(allowed)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"{where}: unknown {what} {given!r}{hint} Allowed: {', '.join(names) or 'none'}"
