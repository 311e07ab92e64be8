"""The console script: every command under one name, every error one line on stderr and exit code 2."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import typer

from edgeredux import __version__
from edgeredux.cli import catalogue, others, stages
from edgeredux.errors import EdgereduxError, one_line

app = typer.Typer(
    name="edgeredux",
    help="Prune, distil, export and judge a model for the device it has to run on.",
    epilog="Exit code: 0 every check passed, 1 a check was missed (the report says which), 2 could not run.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for part in (stages.app, others.app):
    app.add_typer(part)
for name, part in (
    ("targets", catalogue.targets_app),
    ("recipes", catalogue.recipes_app),
    ("passes", catalogue.passes_app),
):
    app.add_typer(part, name=name, invoke_without_command=True)


def version(value: bool) -> None:
    """Print the version and end."""
    if value:
        print(f"edgeredux {__version__}")
        raise typer.Exit


@app.callback()
def root(
    show: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Prune, distil, export and judge a model for the device it has to run on."""


def main() -> None:
    """The console script. Every error is one line on stderr and exit code 2."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        code = app(standalone_mode=False)  # a raised typer.Exit comes back as its code
        if code == 128 + signal.SIGINT:  # what Typer makes of KeyboardInterrupt
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except (typer.Abort, KeyboardInterrupt):
        fail("interrupted; finished steps are kept, the same command goes on where it was")
    except EdgereduxError as problem:
        fail(str(problem))
    except Exception as problem:
        told = getattr(problem, "format_message", None)  # click's errors; newer Typers carry their own copy of click
        if told is not None and type(problem).__name__ == "NoArgsIsHelpError":
            print(told())
            sys.exit(2)
        if told is not None:
            fail(told())
        if os.environ.get("EDGEREDUX_TRACEBACK"):
            raise
        fail(f"a bug of edgeredux: {type(problem).__name__}: {problem} (EDGEREDUX_TRACEBACK=1 shows where)")


def fail(text: str) -> None:
    print(f"edgeredux: {one_line(text)}", file=sys.stderr)
    sys.exit(2)
