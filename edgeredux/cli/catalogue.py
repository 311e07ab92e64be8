"""What there is: the commands targets, recipes and passes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from edgeredux.cli import child
from edgeredux.cli.options import JsonOption, VerboseOption
from edgeredux.cli.output import new_file, say, table

targets_app = typer.Typer(
    help="The devices that edgeredux can judge for.", no_args_is_help=False, rich_markup_mode=None
)


recipes_app = typer.Typer(help="The recipes that come with edgeredux.", rich_markup_mode=None)


passes_app = typer.Typer(help="The graph passes, alone, on any ONNX or TFLite file.", rich_markup_mode=None)


@targets_app.callback()
def targets_root(context: typer.Context, as_json: JsonOption = False) -> None:
    """Without a subcommand: list."""
    if context.invoked_subcommand is None:
        targets_list(as_json)


@targets_app.command("list")
def targets_list(as_json: JsonOption = False) -> None:
    """Name, runtimes and description of every shipped target."""
    from edgeredux import target

    rows = []
    for name in target.shipped():
        item = target.load(name)
        runners = ", ".join(runtime.runner for runtime in item.runtimes)
        rows.append({"name": name, "runtimes": runners, "description": item.description})
    table(rows, as_json)


@targets_app.command("show")
def targetsshow(name: Annotated[str, typer.Argument(metavar="T")], as_json: JsonOption = False) -> None:
    """The whole target file, checked."""
    from edgeredux import target

    item = target.load(name)
    if as_json:
        print(json.dumps(item.model_dump(mode="json"), indent=1))
    else:
        path = target.shipped().get(name, Path(name))
        print(path.read_text(encoding="utf-8"), end="")


@targets_app.command("check")
def targets_check(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]...", help="Default: every shipped target.")
    ] = None,
) -> None:
    """Check target files: exit code 1 when a figure has no source or a rule no ground, 2 when one is malformed."""
    from edgeredux import target, target_check

    found = 0
    for name in files or target.shipped():
        item = target.load(name)
        lines = target_check.problems(item)
        found += len(lines)
        for line in lines:
            print(f"target {item.name}: {line}", file=sys.stderr)
        if not lines:
            runners = ", ".join(runtime.runner for runtime in item.runtimes)
            say(f"target {item.name}: complete; runtimes: {runners}")
    raise typer.Exit(1 if found else 0)


@targets_app.command("calibrate")
def targets_calibrate(
    name: Annotated[str, typer.Argument(metavar="host", help="the only machine that can be calibrated from here")],
    networks: Annotated[int, typer.Option(min=40, max=1000, help="generated networks to time")] = 120,
    as_json: JsonOption = False,
) -> None:
    """Time generated networks on this machine, fit its cost model, keep it as target `host` in the user's folder."""
    import datetime

    import numpy as np

    from edgeredux import host_calibration, target
    from edgeredux.errors import TargetError

    if name != "host":
        raise TargetError(f"targets calibrate: {name!r} is not here to be timed. Allowed: host")
    found = host_calibration.calibrate(networks)
    place = target.own() / "host.yaml"
    host_calibration.save(found, place, datetime.date.today().isoformat())
    error = np.abs(found.errors)
    row = {
        "target": "host",
        "networks": len(error),
        "median_error": round(float(np.median(error)), 4),
        "p90_error": round(float(np.quantile(error, 0.9)), 4),
        "file": str(place),
    }
    table([row], as_json)


@targets_app.command("schema")
def targets_schema() -> None:
    """The JSON Schema of target files; editors complete by it (# yaml-language-server: $schema=FILE)."""
    from edgeredux import target_schema

    print(target_schema.text(), end="")


@recipes_app.callback()
def recipes_root(context: typer.Context, as_json: JsonOption = False) -> None:
    """Without a subcommand: list."""
    if context.invoked_subcommand is None:
        recipes_list(as_json)


@recipes_app.command("list")
def recipes_list(as_json: JsonOption = False) -> None:
    """Name and description of every shipped recipe."""
    from edgeredux import recipe

    rows = []
    for name in recipe.shipped():
        item = recipe.load(name)
        rows.append({"name": name, "description": item.description})
    table(rows, as_json)


@recipes_app.command("show")
def recipesshow(name: Annotated[str, typer.Argument(metavar="R")], as_json: JsonOption = False) -> None:
    """A recipe as written, checked."""
    from edgeredux import recipe

    item = recipe.load(name)
    if as_json:
        print(json.dumps(item.to_json(), indent=1))
    else:
        print(recipe.find(name).read_text(encoding="utf-8"), end="")


@recipes_app.command("copy")
def recipes_copy(
    name: Annotated[str, typer.Argument(metavar="R")],
    to: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Default: ./R.yaml")] = None,
) -> None:
    """Copy a shipped recipe to a file of your own to change; never overwrites."""
    from edgeredux import recipe

    source = recipe.find(name)
    new_file(to or Path(f"{source.stem}.yaml"), source.read_text(encoding="utf-8"))


@passes_app.callback()
def passes_root(context: typer.Context, as_json: JsonOption = False) -> None:
    """Without a subcommand: list."""
    if context.invoked_subcommand is None:
        passes_list(as_json)


@passes_app.command("list")
def passes_list(as_json: JsonOption = False) -> None:
    """Name, format and description of every pass."""
    table(child.run("edgeredux.one_pass:names", {}, as_json, False), as_json)


@passes_app.command("run")
def passes_run(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A pass (see: passes list).")],
    source: Annotated[Path, typer.Argument(metavar="IN", help="The file to rewrite; it stays as it is.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write; never overwritten.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option of the pass; may be repeated.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", "-d", metavar="F.npz", help="Arrays by input name to compare outputs on.")
    ] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Rewrite one file by one pass and prove that it computes the same. Exit code 1: the pass declined, no file."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="edgeredux-") as scratch:
        arguments = {"name": name, "source": source, "out": out, "settings": settings or [], "data": data}
        log = Path(scratch, "log")
        answer = child.run("edgeredux.one_pass:run", {**arguments, "log": log}, as_json, verbose)
    if as_json:
        print(json.dumps(answer, indent=1))
    else:
        say(f"{name}: {answer['why']}" + (f"; wrote {out}" if answer["changed"] else "; nothing was written"))
    raise typer.Exit(0 if answer["changed"] else 1)
