"""More to read for a demo model: prose of the standard library's own source, nothing of what is held out in it."""

from __future__ import annotations

import ast
import inspect
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgeredux.data import part_of, prose

_LEFT_OUT = {"test", "tests", "site-packages", "dist-packages"}  # not everywhere there, or no standard library
_WORDS = 8  # a sentence that has as many in a row with a held-out one tells of it


def library_sentences(held_out: Iterable[str]) -> list[str]:
    """Sentences of docstrings and comments of the standard library, each once, files by name, in reading order.

    Left out is what would fall into another part than training (by its hash, as data.py has it), and every sentence
    that shares eight words in a row with one of `held_out`.
    """
    known = {run for sentence in held_out for run in _runs(sentence)}
    found: dict[str, None] = {}
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if not _LEFT_OUT & set(path.relative_to(root).parts):
            found |= dict.fromkeys(" ".join(sentence.split()) for text in _texts(path) for sentence in prose(text))
    return [text for text in found if part_of(text) == "training" and not known & set(_runs(text))]


def _runs(sentence: str) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"\w+", sentence.lower())
    return (tuple(words[place : place + _WORDS]) for place in range(len(words) - _WORDS + 1))


def _texts(path: Path) -> Iterator[str]:
    """Docstrings of a file, then its comments that have lines of their own, neighbouring lines together."""
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (UnicodeDecodeError, SyntaxError):
        return  # the library ships some as examples of what cannot be read
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield inspect.cleandoc(ast.get_docstring(node) or "")
    lines = [line.strip() for line in source.splitlines()]
    yield "\n".join(line.lstrip("#").strip() if line.startswith("#") else "" for line in lines)
