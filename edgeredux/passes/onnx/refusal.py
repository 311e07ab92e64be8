"""A third-party tool that cannot do its work on a graph: a reason to decline, apart from a mistake of our own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec

from edgeredux.artifact import Change
from edgeredux.errors import one_line

_Given = ParamSpec("_Given")


class Refused(Exception):
    """Why a pass declines, in one line."""


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Whatever the third-party code inside raises, as Refused: "`what`: the error".

    Put nothing else inside: an error of ours would be told as theirs. A full disk and too little memory stay errors.
    """
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as problem:  # these tools raise whatever their code meets, and ONNX Runtime kinds of its own
        raise Refused(one_line(f"{what}: {problem}", 280)) from problem


def declining(name: str) -> Callable[[Callable[_Given, Change]], Callable[_Given, Change]]:
    """Of a pass's `run`: a Refused becomes the Change by which the pass declines."""

    def decorate(run: Callable[_Given, Change]) -> Callable[_Given, Change]:
        @wraps(run)
        def answered(*args: _Given.args, **kwargs: _Given.kwargs) -> Change:
            try:
                return run(*args, **kwargs)
            except Refused as reason:
                return Change(name, False, f"declined: {reason}")

        return answered

    return decorate
