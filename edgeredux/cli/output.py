"""What the terminal is shown: tables, verdicts, lines; and files of the user's that are never overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeredux.errors import StorageError, one_line

if TYPE_CHECKING:
    from edgeredux.report import Report


def show(found: Report, out: Path) -> None:
    from rich.console import Console

    from edgeredux.report import summary_table
    from edgeredux.report_choosing_text import tables

    console = Console()
    for table in tables(found.steps):
        console.print(table)
    if found.stage == "profiled":
        console.print(summary_table(found))
        verdict = "PASS" if found.passed else "FAIL"
        console.print(f"{verdict}  report: {out / 'report.html'}", highlight=False, soft_wrap=True)
        return
    for line in found.steps:
        console.print(f"{line.name}: {line.why}", highlight=False, markup=False, soft_wrap=True)
    following = "export" if found.stage == "reduced" else "profile"
    console.print(f"next: edgeredux {following} {out}", highlight=False, markup=False, soft_wrap=True)


def table(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    if not rows:
        say("none")
        return
    drawn = Table(box=None, pad_edge=False)
    for name in rows[0]:
        drawn.add_column(name, overflow="fold")
    for row in rows:
        drawn.add_row(*(str(value).replace("[", "\\[") for value in row.values()))
    Console().print(drawn)


def say(text: str) -> None:
    print(text)


def new_file(path: Path, text: str, *, quiet: bool = False) -> None:
    try:
        with path.open("x", encoding="utf-8") as handle:
            handle.write(text)
    except FileExistsError as problem:
        raise StorageError(f"{path}: is there already; nothing was overwritten, name another file") from problem
    except OSError as problem:
        raise StorageError(one_line(f"{path}: cannot be written: {problem.strerror}")) from problem
    if not quiet:
        say(f"wrote {path}")
