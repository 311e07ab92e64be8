"""The command line: the only module that prints. Exit code 0: every check passed; 1: one was missed; 2: could not run.

The work runs in a child process whose output goes to a log, so the terminal shows progress, the verdict and nothing
else; this process imports nothing heavy.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeredux import __version__
from edgeredux.errors import EdgereduxError, InternalError, StorageError, one_line

if TYPE_CHECKING:
    from edgeredux.report import Report
    from edgeredux.seams import Progress

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

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name or file (see: recipes list).")]
DeployArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A bundle's folder, or the packed file of one.")]
BundleArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The folder that an earlier command wrote.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="M",
        help="Hugging Face folder or id, package:NAME/FOLDER, package.module:factory, or a file.onnx / file.tflite.",
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option("--data", "-d", metavar="D", help="A .txt, .csv, .jsonl, .parquet, .npz file or a datasets folder."),
]
TargetOption = Annotated[
    list[str] | None, typer.Option("--target", "-t", metavar="T", help="A target's name or file; may be repeated.")
]
OutOption = Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Output folder [out/RECIPE].")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a recipe value; may be repeated.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
VerboseOption = Annotated[
    bool, typer.Option("-v", "--verbose", help="Keep the full log beside the output and say where.")
]
ExporterOption = Annotated[
    str | None, typer.Option("--exporter", metavar="E", help="ONNX exporter: torch-onnx (default) or optimum.")
]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model. Only if you trust it.")
]


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
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Stage 3 of run: dense beside reduced on every target, judged; writes the report."""
    arguments = {"folder": folder, "targets": target or None, "settings": _settings(settings, None, False)}
    _job("profile", arguments, as_json, verbose)


@app.command()
def report(folder: BundleArgument, as_json: JsonOption = False, verbose: VerboseOption = False) -> None:
    """Verify a bundle's files, judge its readings again, and draw report.html anew."""
    _job("report", {"folder": folder}, as_json, verbose)


@app.command()
def deploy(
    folder: DeployArgument,
    target: Annotated[str, typer.Option("--target", "-t", metavar="T", help="The target to deploy for.")],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where to install what the target needs.")],
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Install from a bundle just what one target needs, and prove there that it answers as it did here."""
    answer = _isolated("edgeredux.deploy:deploy", {"folder": folder, "target": target, "to": to}, as_json, verbose)
    if as_json:
        print(json.dumps(answer, indent=1))
    else:
        _say(f"installed {answer['file']} for {answer['target']} in {to}: {answer['how']}")
    raise typer.Exit(0 if answer["passed"] else 1)


@app.command()
def prune(
    model: Annotated[str, typer.Argument(metavar="M", help="A Hugging Face folder or id with safetensors.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The new checkpoint folder.")],
    method: Annotated[str, typer.Option("--method", help="magnitude, random, wanda, sparsegpt or alps.")] = "sparsegpt",
    pattern: Annotated[
        str, typer.Option("--pattern", help="unstructured, n:m, a block such as 1x4, tile.")
    ] = "unstructured",
    zeros: Annotated[
        float | None, typer.Option("--zeros", help="Share of zeros [0.5, or what the pattern says].")
    ] = None,
    data: DataOption = None,
    texts: Annotated[int, typer.Option("--texts", help="Calibration texts.")] = 128,
    tokens: Annotated[int, typer.Option("--tokens", help="Tokens a text is cut to.")] = 128,
    batch: Annotated[int, typer.Option("--batch", help="Texts that are run together.")] = 8,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="P", help="Layers to leave alone; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of method random.")] = 0,
    threads: Annotated[int, typer.Option("--threads", help="Threads of the arithmetic.")] = 1,
    shard_mb: Annotated[int, typer.Option("--shard-mb", help="Largest new weight file, 10^6 bytes.")] = 2000,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Prune a checkpoint of any size block by block, the rest on the disk. The same command goes on after a kill."""
    arguments = {
        "model": model,
        "out": out,
        "method": method,
        "pattern": pattern,
        "zeros": zeros,
        "data": data or "python-docs",
        "texts": texts,
        "tokens": tokens,
        "batch": batch,
        "exclude": exclude or (),
        "seed": seed,
        "threads": threads,
        "shard_mb": shard_mb,
        "remote_code": trust_remote_code,
    }
    done = _isolated("edgeredux.oneline_folder:prune_folder", arguments, as_json, verbose)
    if as_json:
        print(json.dumps(done.to_json(), indent=1))
    else:
        _say(f"wrote {out}: {done.zeros:,} of {done.weights:,} weights in {len(done.blocks)} blocks are zero")


@app.command()
def pack(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A bundle's folder, or a .onnx or .tflite file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write; never overwritten.")],
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """One compressed file for the way to a device, in which zeros of weights cost next to nothing."""
    answer = _isolated("edgeredux.shipping.packed:pack", {"source": source, "out": out}, as_json, verbose)
    if as_json:
        print(json.dumps(answer, indent=1))
        return
    plain, pressed, packed = (answer[name] for name in ("plain_bytes", "zstd_bytes", "packed_bytes"))
    _say(f"packed {answer['files']} files of {plain} bytes into {packed}; zstd alone: {pressed}; wrote {out}")


@app.command()
def unpack(
    source: Annotated[Path, typer.Argument(metavar="PACKED", help="A file that pack wrote.")],
    to: Annotated[Path, typer.Argument(metavar="TO", help="The folder to make; nothing is overwritten.")],
    limit: Annotated[int, typer.Option("--limit-mb", metavar="MB", min=1, help="Refuse what expands to more.")] = 32768,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Expand what pack wrote, bit for bit, each file's hash checked. deploy takes a packed bundle as it is."""
    arguments = {"packed": source, "to": to, "limit_bytes": limit << 20}
    answer = _isolated("edgeredux.shipping.packed:unpack", arguments, as_json, verbose)
    if as_json:
        print(json.dumps(answer, indent=1))
    else:
        _say(f"expanded {answer['files']} files, {answer['bytes']} bytes, into {to}")


@app.command()
def generate(
    folder: BundleArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to go on from; - reads it from stdin.")],
    artifact: Annotated[
        str | None, typer.Option("--artifact", metavar="A", help="Another ONNX artifact: NAME or dense/NAME.")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", metavar="N", help="New tokens at most.")] = 64,
    temperature: Annotated[float, typer.Option("--temperature", metavar="X", help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option("--top-k", metavar="K", help="Draw from the K likeliest.")] = 50,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the draw.")] = 0,
    threads: Annotated[int, typer.Option("--threads", metavar="N", help="Threads of the runtime.")] = 2,
    raw: Annotated[bool, typer.Option("--raw", help="Do not put the prompt into the chat template.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Text from a bundle's decoder, as it comes; how fast it came is said at the end."""
    from edgeredux.generate import Answer, open_bundle
    from edgeredux.generation import Sampling

    sampling = Sampling(temperature, top_k, seed)
    speaker = open_bundle(folder, artifact, threads)
    answer = Answer()
    text = sys.stdin.read() if prompt == "-" else prompt
    for piece in speaker.stream(text, max_tokens, sampling, answer, raw=raw):
        if not as_json:
            print(piece, end="", flush=True)
    said = answer.to_json()
    if as_json:
        print(json.dumps(said, indent=1))
        return
    _say("")
    speed = said["decode_tokens_per_s"]
    line = f"{len(answer.tokens)} tokens, the first after {said['time_to_first_token_ms']:.0f} ms"
    ended = {"end": "end of text", "limit": "--max-tokens reached", "context": "the model's context is full"}
    more = "" if speed is None else f", then {speed:.1f} a second"
    print(f"{line}{more} (measured); {ended[answer.ended]}", file=sys.stderr)


targets_app = typer.Typer(
    help="The devices that edgeredux can judge for.", no_args_is_help=False, rich_markup_mode=None
)
recipes_app = typer.Typer(help="The recipes that come with edgeredux.", rich_markup_mode=None)
app.add_typer(targets_app, name="targets", invoke_without_command=True)
app.add_typer(recipes_app, name="recipes", invoke_without_command=True)
passes_app = typer.Typer(help="The graph passes, alone, on any ONNX or TFLite file.", rich_markup_mode=None)
app.add_typer(passes_app, name="passes", invoke_without_command=True)


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
    _rows(rows, as_json)


@targets_app.command("show")
def targets_show(name: Annotated[str, typer.Argument(metavar="T")], as_json: JsonOption = False) -> None:
    """The whole target file, checked."""
    from edgeredux import target

    item = target.load(name)
    if as_json:
        print(json.dumps(item.model_dump(mode="json"), indent=1))
    else:
        path = target.shipped().get(name, Path(name))
        print(path.read_text(encoding="utf-8"), end="")


@targets_app.command("check")
def targets_check(file: Annotated[str, typer.Argument(metavar="FILE")]) -> None:
    """Check a target file; exit code 2 and one line when something is wrong."""
    from edgeredux import target

    item = target.load(file)
    _say(f"target {item.name}: well-formed; runtimes: {', '.join(runtime.runner for runtime in item.runtimes)}")


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
    _rows(rows, as_json)


@recipes_app.command("show")
def recipes_show(name: Annotated[str, typer.Argument(metavar="R")], as_json: JsonOption = False) -> None:
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
    _new_file(to or Path(f"{source.stem}.yaml"), source.read_text(encoding="utf-8"))


@passes_app.callback()
def passes_root(context: typer.Context, as_json: JsonOption = False) -> None:
    """Without a subcommand: list."""
    if context.invoked_subcommand is None:
        passes_list(as_json)


@passes_app.command("list")
def passes_list(as_json: JsonOption = False) -> None:
    """Name, format and description of every pass."""
    _rows(_isolated("edgeredux.one_pass:names", {}, as_json, False), as_json)


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
        answer = _isolated("edgeredux.one_pass:run", {**arguments, "log": log}, as_json, verbose)
    if as_json:
        print(json.dumps(answer, indent=1))
    else:
        _say(f"{name}: {answer['why']}" + (f"; wrote {out}" if answer["changed"] else "; nothing was written"))
    raise typer.Exit(0 if answer["changed"] else 1)


@app.command()
def init(
    to: Annotated[Path, typer.Argument(metavar="[FILE]", help="The recipe to write.")] = Path("recipe.yaml"),
    model: ModelOption = None,
) -> None:
    """Write a commented recipe to start from, for your own model; never overwrites."""
    from edgeredux import recipe

    text = recipe.shipped()["quickstart"].read_text(encoding="utf-8")
    lines = [
        (f"model: {json.dumps(model)}" if model and line.startswith("model:") else line) for line in text.splitlines()
    ]
    lines = [f"name: {to.stem}" if line.startswith("name:") else line for line in lines]
    body = "\n".join(lines) + "\n"
    import yaml

    recipe.parse(yaml.safe_load(body), f"recipe {to}")
    _new_file(to, body)
    _say(f"next: edgeredux run {to}" + ("" if model else " --model YOUR_MODEL"))


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Which runtimes, simulators, compilers, meters and devices are here, and how to install what is missing."""
    from edgeredux.doctor import examine

    found = examine()
    rows = [
        {"name": f.name, "kind": f.kind, "status": f.status, "detail": f.detail, "install": f.install or ""}
        for f in found
    ]
    _rows(rows, as_json)


def _settings(given: list[str] | None, exporter: str | None, trust: bool) -> list[str]:
    settings = list(given or ())
    if exporter is not None:
        settings.append(f"exporters.onnx={json.dumps(exporter)}")
    if trust:
        settings.append("trust_remote_code=true")
    return settings


def _job(name: str, arguments: dict[str, Any], as_json: bool, verbose: bool) -> None:
    found: Report = _isolated(f"edgeredux.jobs:{name}", arguments, as_json, verbose)
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        _show(found, _out_of(name, arguments, found))
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


def _show(found: Report, out: Path) -> None:
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


def _isolated(function: str, arguments: dict[str, Any], as_json: bool, verbose: bool) -> Any:
    """Run the work in a child; its noise goes to a temporary log that stays only when it is of use."""
    import tempfile

    from edgeredux import isolated

    handle, name = tempfile.mkstemp(prefix="edgeredux-", suffix=".log")
    os.close(handle)
    log = Path(name)
    keep = verbose
    try:
        with _Drawing(quiet=as_json) as draw:
            return isolated.call(function, arguments, log=log, what="edgeredux", progress=draw, timeout_s=7 * 86400.0)
    except InternalError as problem:
        keep = True
        raise InternalError(f"{problem} (log: {log})") from problem
    finally:
        if verbose:
            print(f"log: {log}", file=sys.stderr)
        if not keep:
            log.unlink(missing_ok=True)


class _Drawing:
    """A bar with time left on a terminal's stderr; elsewhere a line per stage on stdout; nothing with --json.

    Where nobody watches, stderr is for the verdict's misses and for the one line of an error.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._said = ""

    def __enter__(self) -> Progress:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
        return self.draw

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def draw(self, text: str, done: float, total: float) -> None:
        """One message of the work."""
        if self._quiet:
            return
        stage = " ".join(text.split(":")[:2]) if self._bar is None else text.split(":")[0]
        if self._bar is None:
            if stage.split(" loss")[0] != self._said:
                self._said = stage.split(" loss")[0]
                print(text, flush=True)
            return
        if stage != self._said:
            self._said = stage
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(text, total=total)
        self._bar.update(self._task, description=text[:90].replace("[", "("), completed=done, total=total)


def _rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    if not rows:
        _say("none")
        return
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(str(value).replace("[", "\\[") for value in row.values()))
    Console().print(table)


def _say(text: str) -> None:
    print(text)


def _new_file(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as handle:
            handle.write(text)
    except FileExistsError as problem:
        raise StorageError(f"{path}: is there already; nothing was overwritten, name another file") from problem
    except OSError as problem:
        raise StorageError(one_line(f"{path}: cannot be written: {problem.strerror}")) from problem
    _say(f"wrote {path}")


def main() -> None:
    """The console script. Every error is one line on stderr and exit code 2."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        code = app(standalone_mode=False)  # a raised typer.Exit comes back as its code
        if code == 128 + signal.SIGINT:  # what Typer makes of KeyboardInterrupt
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted; finished steps are kept, the same command goes on where it was")
    except EdgereduxError as problem:
        _fail(str(problem))
    except Exception as problem:
        told = getattr(problem, "format_message", None)  # click's errors; newer Typers carry their own copy of click
        if told is not None and type(problem).__name__ == "NoArgsIsHelpError":
            print(told())
            sys.exit(2)
        if told is not None:
            _fail(told())
        if os.environ.get("EDGEREDUX_TRACEBACK"):
            raise
        _fail(f"a bug of edgeredux: {type(problem).__name__}: {problem} (EDGEREDUX_TRACEBACK=1 shows where)")


def _fail(text: str) -> None:
    print(f"edgeredux: {one_line(text)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
