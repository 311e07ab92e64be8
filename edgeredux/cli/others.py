"""The commands that stand alone: prune, pack, unpack, generate, genai, litert, init and doctor."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from edgeredux.cli import child
from edgeredux.cli.options import (
    ArtifactOption,
    BundleArgument,
    DataOption,
    JsonOption,
    ModelOption,
    NewFolderArgument,
    ThreadsOption,
    TrustOption,
    VerboseOption,
)
from edgeredux.cli.output import new_file, say, table
from edgeredux.errors import EnvironmentProblem, unknown

app = typer.Typer()


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
    done = child.run("edgeredux.oneline_folder:prune_folder", arguments, as_json, verbose)
    if as_json:
        print(json.dumps(done.to_json(), indent=1))
    else:
        say(f"wrote {out}: {done.zeros:,} of {done.weights:,} weights in {len(done.blocks)} blocks are zero")


@app.command()
def pack(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A bundle's folder, or a .onnx or .tflite file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write; never overwritten.")],
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """One compressed file for the way to a device, in which zeros of weights cost next to nothing."""
    answer = child.run("edgeredux.shipping.packed:pack", {"source": source, "out": out}, as_json, verbose)
    if as_json:
        print(json.dumps(answer, indent=1))
        return
    plain, pressed, packed = (answer[name] for name in ("plain_bytes", "zstd_bytes", "packed_bytes"))
    say(f"packed {answer['files']} files of {plain} bytes into {packed}; zstd alone: {pressed}; wrote {out}")


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
    answer = child.run("edgeredux.shipping.packed:unpack", arguments, as_json, verbose)
    if as_json:
        print(json.dumps(answer, indent=1))
    else:
        say(f"expanded {answer['files']} files, {answer['bytes']} bytes, into {to}")


@app.command()
def generate(
    folder: BundleArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to go on from; - reads it from stdin.")],
    artifact: ArtifactOption = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", metavar="N", help="New tokens at most.")] = 64,
    temperature: Annotated[float, typer.Option("--temperature", metavar="X", help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option("--top-k", metavar="K", help="Draw from the K likeliest.")] = 50,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the draw.")] = 0,
    threads: ThreadsOption = 2,
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
    say("")
    speed = said["decode_tokens_per_s"]
    line = f"{len(answer.tokens)} tokens, the first after {said['time_to_first_token_ms']:.0f} ms"
    ended = {"end": "end of text", "limit": "--max-tokens reached", "context": "the model's context is full"}
    more = "" if speed is None else f", then {speed:.1f} a second"
    print(f"{line}{more} (measured); {ended[answer.ended]}", file=sys.stderr)


@app.command()
def genai(
    folder: BundleArgument,
    out: NewFolderArgument,
    artifact: ArtifactOption = None,
    threads: ThreadsOption = 2,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """A bundle's decoder as a folder that onnxruntime-genai loads, tried with it; exit code 1 where it is not here."""
    arguments = {"folder": folder, "out": out, "artifact": artifact, "threads": threads}
    answer = child.run("edgeredux.genai:write", arguments, as_json, verbose)
    tried = answer["tokens"] is not None  # a folder that nobody tried has passed nothing
    if as_json:
        print(json.dumps(answer, indent=1))
        raise typer.Exit(0 if tried else 1)
    how = (
        f"onnxruntime-genai generates the same {answer['tokens']} tokens from it"
        if tried
        else "not tried: onnxruntime-genai is not installed (pip install 'edgeredux[genai]')"
    )
    say(f"wrote {out}: {answer['layers']} layers, {how}")
    if answer["tokenizer"] not in (None, "same"):
        print(f"its tokenizer: {answer['tokenizer']}", file=sys.stderr)
    raise typer.Exit(0 if tried else 1)


@app.command()
def litert(
    folder: BundleArgument,
    out: NewFolderArgument,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", metavar="N", help="Tokens that go in at a time.")
    ] = 64,
    context: Annotated[int, typer.Option("--context", metavar="N", help="Tokens that are seen at most.")] = 256,
    threads: ThreadsOption = 2,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """A bundle's decoder as a TFLite file with prefill and decode, tried with LiteRT; `generate` reads the folder."""
    arguments = {
        "folder": folder,
        "out": out,
        "prompt_tokens": prompt_tokens,
        "context": context,
        "threads": threads,
    }
    answer = child.run("edgeredux.litert_decoder:write", arguments, as_json, verbose)
    if as_json:
        print(json.dumps(answer, indent=1))
        return
    tried = f"LiteRT generates PyTorch's {answer['tokens'][0]} tokens after {len(answer['tokens'])} prompts"
    say(f"wrote {out}: {answer['layers']} layers, {answer['model'] / 1e6:.1f} MB, {tried}")


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
    new_file(to, body)
    say(f"next: edgeredux run {to}" + ("" if model else " --model YOUR_MODEL"))


@app.command()
def doctor(
    install: Annotated[
        str | None, typer.Option("--install", metavar="S", help="Build a simulator first: arm64-sim.")
    ] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Which runtimes, simulators, compilers, meters and devices are here, and how to install what is missing."""
    from edgeredux.doctor import INSTALLS, examine

    if install is not None:
        if install not in INSTALLS:
            raise EnvironmentProblem(unknown("simulator", install, INSTALLS, "doctor --install"))
        child.run(INSTALLS[install], {}, as_json, verbose)
    found = examine()
    rows = [
        {"name": f.name, "kind": f.kind, "status": f.status, "detail": f.detail, "install": f.install or ""}
        for f in found
    ]
    table(rows, as_json)
