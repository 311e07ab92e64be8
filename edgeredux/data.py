"""Text and arrays: read, cleaned, and split by a fixed hash into parts that never mix.

python-docs                     English sentences from Python's own documentation (pydoc_data.topics), the default
file.txt                        one text a line
file.csv  file.jsonl  file.parquet        column `text` (or the one the recipe names), optional label column
folder                          a Hugging Face `datasets` folder (save_to_disk), or one holding such files
file.npz                        arrays by input name, first axis = samples, for models that take no text
synthetic                       arrays like the model's example inputs
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from edgeredux.errors import DataError, one_line

Part: TypeAlias = Literal["calibration", "training", "evaluation"]
# Share of the hash range each part gets, in percent.
SHARES: tuple[tuple[Part, int], ...] = (("calibration", 10), ("training", 75), ("evaluation", 15))
MINIMUM: Mapping[Part, int] = {"calibration": 8, "training": 8, "evaluation": 16}
SUFFIXES = (".txt", ".csv", ".jsonl", ".parquet")
ALLOWED = "python-docs, a .txt, .csv, .jsonl, .parquet or .npz file, a Hugging Face datasets folder"
_MAX_CHARACTERS = 2000


@dataclass(frozen=True)
class Example:
    """One text, with its label where the data has one."""

    text: str
    label: str | None = None


@dataclass(frozen=True)
class TextData:
    """The three parts, each in the order of its hash, and the hash of all of it."""

    source: str
    parts: Mapping[Part, tuple[Example, ...]]
    sha256: str

    def take(self, part: Part, count: int) -> tuple[Example, ...]:
        """At most `count` examples of a part."""
        return self.parts[part][:count]

    def describe(self) -> dict[str, Any]:
        """What the report says of the data."""
        return {"source": self.source, "sha256": self.sha256, **{name: len(self.parts[name]) for name, _ in SHARES}}


def part_of(text: str) -> Part:
    """The part a text belongs to: by its SHA-256, so that it never changes sides when data is added."""
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 100
    for name, share in SHARES:
        place -= share
        if place < 0:
            return name
    raise AssertionError("shares add up to 100")


def read_texts(source: str, *, text: str = "text", label: str | None = None) -> TextData:
    """The split texts behind `source`. Raises DataError when empty, unreadable, or without the wanted columns."""
    seen: dict[str, Example] = {}
    for example in _examples(source, text, label):
        cleaned = " ".join(example.text.split())[:_MAX_CHARACTERS]
        if cleaned and cleaned not in seen:
            seen[cleaned] = Example(cleaned, example.label)
    if not seen:
        raise DataError(f"data {source}: it holds no text")
    ordered = sorted(seen.values(), key=lambda example: hashlib.sha256(example.text.encode()).digest()[8:])
    parts: dict[Part, list[Example]] = {name: [] for name, _ in SHARES}
    for example in ordered:
        parts[part_of(example.text)].append(example)
    for name, needed in MINIMUM.items():
        if len(parts[name]) < needed:
            raise DataError(
                f"data {source}: {len(seen)} different texts leave {len(parts[name])} for {name}; at least {needed} "
                "are needed there, so give about 150 texts or more"
            )
    digest = hashlib.sha256()
    for example in ordered:
        digest.update(f"{example.text}\0{example.label}\n".encode())
    return TextData(source, {name: tuple(value) for name, value in parts.items()}, digest.hexdigest())


def _examples(source: str, text: str, label: str | None) -> Iterator[Example]:
    if source == "python-docs":
        yield from (Example(sentence) for sentence in python_docs())
        return
    path = Path(source).expanduser()
    if path.is_dir():
        yield from _folder(path, source, text, label)
    elif not path.exists():
        raise DataError(f"data {source}: no such file or folder. Allowed: {ALLOWED}")
    elif path.suffix not in SUFFIXES:
        raise DataError(f"data {source}: files of kind {path.suffix!r} are not read. Allowed: {ALLOWED}")
    else:
        try:
            yield from _file(path, source, text, label)
        except UnicodeDecodeError as problem:
            raise DataError(f"data {source}: not UTF-8 text (byte {problem.start})") from problem
        except OSError as problem:
            raise DataError(one_line(f"data {source}: cannot be read: {problem}")) from problem


def python_docs() -> list[str]:
    """Prose sentences of 20 to 400 characters from pydoc_data.topics, in the order they stand there."""
    from pydoc_data.topics import topics

    return [sentence for name in sorted(topics) for sentence in prose(topics[name])]


def prose(text: str) -> list[str]:
    """Sentences of 20 to 400 characters, mostly letters: grammar, code, tables and headings are no prose."""
    sentences: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.strip("\n").split("\n")
        if any(re.search(r"(::=|>>>|^\s*[-=*+|^]{3,}|\|$)", line) for line in lines):
            continue
        joined = " ".join(line.strip() for line in lines)
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z\"*])", joined):
            letters = sum(character.isalpha() or character == " " for character in sentence)
            if 20 <= len(sentence) <= 400 and letters >= 0.7 * len(sentence):
                sentences.append(sentence)
    return sentences


def _file(path: Path, source: str, text: str, label: str | None) -> Iterator[Example]:
    if path.suffix == ".txt":
        with path.open(encoding="utf-8") as handle:
            yield from (Example(line) for line in handle if line.strip())
    elif path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as handle:
            reader = csv.DictReader(handle)
            _columns(reader.fieldnames or (), source, text, label)
            try:
                for row in reader:
                    yield _row(row, text, label)
            except csv.Error as problem:
                raise DataError(one_line(f"data {source}: line {reader.line_num}: {problem}")) from problem
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as handle:
            for number, line in enumerate(handle, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as problem:
                    raise DataError(f"data {source}: line {number} is no JSON") from problem
                if not isinstance(row, dict):
                    raise DataError(f"data {source}: line {number} is no JSON object")
                _columns(row, f"{source}: line {number}", text, label)
                yield _row(row, text, label)
    else:
        yield from _parquet(path, source, text, label)


def _parquet(path: Path, source: str, text: str, label: str | None) -> Iterator[Example]:
    import pyarrow
    import pyarrow.parquet

    wanted = [text] if label is None else [text, label]
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            _columns(table.schema_arrow.names, source, text, label)
            for batch in table.iter_batches(columns=wanted):
                yield from (_row(row, text, label) for row in batch.to_pylist())
    except pyarrow.ArrowException as problem:
        raise DataError(one_line(f"data {source}: no readable parquet file: {problem}", 300)) from problem


def _folder(path: Path, source: str, text: str, label: str | None) -> Iterator[Example]:
    import pyarrow
    import pyarrow.ipc

    arrow = sorted(path.glob("*.arrow")) + sorted(path.glob("*/*.arrow"))
    arrow = [file for file in arrow if not file.name.startswith("cache-")]  # results of somebody's map() calls
    files = sorted(file for file in [*path.iterdir(), *path.glob("data/*")] if file.suffix in SUFFIXES)
    if not arrow and not files:
        raise DataError(f"data {source}: the folder holds no dataset. Allowed: {ALLOWED}")
    for file in arrow:
        try:
            with pyarrow.memory_map(str(file)) as mapped, pyarrow.ipc.open_stream(mapped) as stream:
                _columns(stream.schema.names, f"{source}: {file.name}", text, label)
                for batch in stream:
                    chosen = batch.select([text] if label is None else [text, label])
                    yield from (_row(row, text, label) for row in chosen.to_pylist())
        except pyarrow.ArrowException as problem:
            raise DataError(one_line(f"data {source}: {file.name} is damaged: {problem}", 300)) from problem
    if not arrow:
        for file in files:
            yield from _examples(str(file), text, label)


def _columns(have: Sequence[str] | Mapping[str, Any], source: str, text: str, label: str | None) -> None:
    for kind, name in (("text", text), ("label", label)):
        if name is not None and name not in have:
            raise DataError(
                f"data {source}: no column {name!r} for the {kind}. Columns: {', '.join(map(str, have)) or 'none'}; "
                f"choose one with --set data.{kind}=NAME"
            )


def _row(row: Mapping[str, Any], text: str, label: str | None) -> Example:
    value = row.get(text)
    if value is not None and not isinstance(value, str):
        raise DataError(f"data: column {text!r} holds {type(value).__name__}, not text")
    return Example(value or "", None if label is None or row.get(label) is None else str(row[label]))
