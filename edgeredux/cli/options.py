"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

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
ArtifactOption = Annotated[
    str | None, typer.Option("--artifact", metavar="A", help="Another ONNX artifact: NAME or dense/NAME.")
]
ThreadsOption = Annotated[int, typer.Option("--threads", metavar="N", help="Threads of the runtime.")]
NewFolderArgument = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make; nothing is overwritten.")]
