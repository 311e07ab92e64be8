"""The commands run, reduce, export, profile, report and deploy."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeredux.cli import child
from edgeredux.cli.options import (
    BundleArgument,
    DataOption,
    DeployArgument,
    ExporterOption,
    JsonOption,
    ModelOption,
    OutOption,
    RecipeArgument,
    SetOption,
    TargetOption,
    TrustOption,
    VerboseOption,
)
from edgeredux.cli.output import new_file, say, show
from edgeredux.errors import StorageError

if TYPE_CHECKING:
    from edgeredux.report import Report

app = typer.Typer()


@app.command()
def run(
    recipe: RecipeArgument,
    model: ModelOption = None,
    data: DataOption = None,
    target: TargetOption = None,
    out: OutOption = None,
    settings: SetOption = None,
    exporter: ExporterOption = None,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Reduce, export, rewrite, profile and judge, into one bundle. The same command goes on after a kill."""
    arguments = {"recipe": recipe, "model": model, "data": data, "targets": target or None, "out": out}
    _job("run", {**arguments, "settings": _settings(settings, exporter, trust_remote_code)}, as_json, verbose)


@app.command()
def reduce(
    recipe: RecipeArgument,
    model: ModelOption = None,
    data: DataOption = None,
    out: OutOption = None,
    settings: SetOption = None,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Stage 1 of run: prune and distil in PyTorch; the reduced model is in DIR/pytorch."""
    arguments = {"recipe": recipe, "model": model, "data": data, "out": out}
    _job("reduce", {**arguments, "settings": _settings(settings, None, trust_remote_code)}, as_json, verbose)


@app.command()
def export(
    folder: BundleArgument,
    target: TargetOption = None,
    settings: SetOption = None,
    exporter: ExporterOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Stage 2 of run: ONNX and TFLite from what reduce wrote, and the passes."""
    arguments = {"folder": folder, "targets": target or None, "settings": _settings(settings, exporter, False)}
    _job("export", arguments, as_json, verbose)


@app.command()
def profile(
    folder: BundleArgument,
    target: TargetOption = None,
    settings: SetOption = None,
    record: Annotated[
        Path | None, typer.Option("--record", metavar="FILE", help="Keep what was measured for the runner replay.")
    ] = None,
    records: Annotated[
        list[Path] | None,
        typer.Option("--records", metavar="FILE", help="Readings recorded elsewhere, for replay; may be repeated."),
    ] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Stage 3 of run: dense beside reduced on every target (all: the shipped ones), judged; writes the report."""
    import os

    from edgeredux.records import VARIABLE

    if records:  # absolute: the child may look from another folder
        os.environ[VARIABLE] = os.pathsep.join(str(path.absolute()) for path in records)
    if record is not None and record.exists():
        raise StorageError(f"{record}: is there already; nothing was overwritten, name another file")
    arguments = {"folder": folder, "targets": target or None, "settings": _settings(settings, None, False)}
    _job("profile", arguments, as_json, verbose, record)


@app.command()
def report(folder: BundleArgument, as_json: JsonOption = False, verbose: VerboseOption = False) -> None:
    """Verify a bundle's files, judge its readings again, and draw report.html anew."""
    _job("report", {"folder": folder}, as_json, verbose)


@app.command()
def deploy(
    folder: DeployArgument,
    target: Annotated[str, typer.Option("--target", "-t", metavar="T", help="The target to deploy for.")],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where to install what the target needs.")],
    host: Annotated[str, typer.Option("--host", metavar="H", help="The device, over ssh: [USER@]HOST[:PORT].")] = "",
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Install from a bundle just what one target needs, and prove there that it answers as it did here."""
    arguments = {"folder": folder, "target": target, "to": to, "host": host}
    answer = child.run("edgeredux.deploy:deploy", arguments, as_json, verbose)
    if as_json:
        print(json.dumps(answer, indent=1))
    else:
        where = f"{to} on {answer['device']}" if "device" in answer else str(to)
        say(f"installed {answer['file']} for {answer['target']} in {where}: {answer['how']}")
    raise typer.Exit(0 if answer["passed"] else 1)


def _settings(given: list[str] | None, exporter: str | None, trust: bool) -> list[str]:
    settings = list(given or ())
    if exporter is not None:
        settings.append(f"exporters.onnx={json.dumps(exporter)}")
    if trust:
        settings.append("trust_remote_code=true")
    return settings


def _job(name: str, arguments: dict[str, Any], as_json: bool, verbose: bool, record: Path | None = None) -> None:
    found: Report = child.run(f"edgeredux.jobs:{name}", arguments, as_json, verbose)
    if record is not None:
        from edgeredux import records

        new_file(record, records.text(records.of_report(found)), quiet=as_json)
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        show(found, _out_of(name, arguments, found))
    if found.stage != "profiled":
        raise typer.Exit(0)
    if not as_json:
        for line in found.failures():
            print(f"missed: {line}", file=sys.stderr)
    raise typer.Exit(0 if found.passed else 1)


def _out_of(name: str, arguments: dict[str, Any], found: Report) -> Path:
    if "folder" in arguments:
        return Path(arguments["folder"])
    return Path(arguments["out"]) if arguments.get("out") else Path("out") / str(found.recipe["name"])
