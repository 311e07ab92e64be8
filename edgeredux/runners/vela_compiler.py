"""Arm's Vela compiler in a child process: the compiled file, its summary, its per-layer table, what fell back.

Vela estimates performance from its model of the NPU's pipeline and of the memories in its configuration file
(https://gitlab.arm.com/artificial-intelligence/ethos-u/ethos-u-vela, PERFORMANCE.md); it says itself that this is
an approximation of the hardware.
"""

from __future__ import annotations

import configparser
import csv
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeredux.errors import ArtifactError, EnvironmentProblem, one_line

CONFIG = "Arm/vela.ini"
# Operators whose work is multiply-accumulates: a latency without one of these is not the model's latency.
MAC_KINDS = (
    "CONV_2D",
    "CONV_3D",
    "DEPTHWISE_CONV_2D",
    "TRANSPOSE_CONV",
    "FULLY_CONNECTED",
    "BATCH_MATMUL",
    "LSTM",
    "UNIDIRECTIONAL_SEQUENCE_LSTM",
    "BIDIRECTIONAL_SEQUENCE_LSTM",
    "RNN",
    "UNIDIRECTIONAL_SEQUENCE_RNN",
    "SVDF",
)
_MEMORIES = ("sram", "dram", "on_chip_flash", "off_chip_flash")


@dataclass(frozen=True)
class Operator:
    """An operator of a TFLite file: its kind, the name of its first output, the type of its first input."""

    kind: str
    name: str
    input_type: str


@dataclass(frozen=True)
class Compiled:
    """What Vela made of one file and said about it. Bytes are per inference, `used` in bytes at the peak."""

    path: Path
    latency_ms: float
    clock_mhz: float
    macs: int
    used: Mapping[str, float]
    moved: Mapping[str, float]
    weight_bytes: Mapping[str, int]  # original, encoded
    cycles: Mapping[str, int]
    layers: Sequence[Mapping[str, Any]]
    source: Sequence[Operator]
    fallbacks: Sequence[Operator]


def sections(kind: str) -> dict[str, dict[str, str]]:
    """The System_Config or Memory_Mode sections of the configuration file that comes with Vela."""
    spec = importlib.util.find_spec("ethosu")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "config_files" / CONFIG
        if path.is_file():
            parser = configparser.ConfigParser()
            parser.read(path, encoding="utf-8")
            return {
                name.removeprefix(kind + "."): dict(parser[name]) for name in parser.sections() if name.startswith(kind)
            }
    raise EnvironmentProblem(
        f"Vela's {CONFIG} was not found; install it again: pip install --force-reinstall ethos-u-vela"
    )


def compile_file(source: Path, out_dir: Path, arguments: Sequence[str]) -> Compiled:
    """Compile `source` into `out_dir` and read the reports. Call it in a child process: bad files crash Vela.

    Raises ArtifactError with what Vela said.
    """
    from ethosu.vela import vela

    out_dir.mkdir(parents=True, exist_ok=True)
    try:
        vela.main([str(source), "--output-dir", str(out_dir), "--config", CONFIG, "--verbose-performance", *arguments])
    except SystemExit as problem:
        if problem.code:
            raise ArtifactError(one_line(f"{source.name}: Vela ended with {problem.code}")) from problem
    except Exception as problem:  # the compiler's core raises whatever its C++ side threw
        raise ArtifactError(one_line(f"{source.name}: Vela cannot compile it: {problem}")) from problem
    compiled = out_dir / f"{source.stem}_vela.tflite"
    summary_file = next(iter(sorted(out_dir.glob(f"{glob_safe(source.stem)}_summary_*.csv"))), None)
    layer_file = out_dir / f"{source.stem}_per-layer.csv"
    if not compiled.is_file() or summary_file is None or not layer_file.is_file():
        raise ArtifactError(f"{source.name}: Vela wrote no compiled model or no report")
    left = [operator for operator in operators(compiled) if operator.kind != "CUSTOM:ethos-u"]
    return read_reports(compiled, summary_file, layer_file, operators(source), left)


def glob_safe(name: str) -> str:
    """The name with what a glob would read as a pattern quoted."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def read_reports(
    compiled: Path, summary_file: Path, layer_file: Path, source: Sequence[Operator], fallbacks: Sequence[Operator]
) -> Compiled:
    """The figures of Vela's two CSV files. Raises ArtifactError when a column is absent or no number."""
    with summary_file.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    with layer_file.open(newline="", encoding="utf-8") as handle:
        layers = list(csv.DictReader(handle))
    try:
        row = rows[0]
        return Compiled(
            path=compiled,
            latency_ms=float(row["inference_time"]) * 1e3,
            clock_mhz=float(row["core_clock"]) / 1e6,
            macs=int(float(row["nn_macs"])),
            used={name: float(row[f"{name}_memory_used"]) * 1024 for name in _MEMORIES},
            moved={name: float(row[f"{name}_total_bytes"]) for name in _MEMORIES},
            weight_bytes={
                "original": int(float(row["total_original_weights"])),
                "encoded": int(float(row["total_npu_encoded_weights"])),
            },
            cycles={name.removeprefix("cycles_"): int(float(row[name])) for name in row if name.startswith("cycles_")},
            layers=[
                {
                    "operator": layer["Original Operator"],
                    "runs_as": layer["NNG Operator"],
                    "on": layer["Target"],
                    "cycles": float(layer["Op Cycles"]),
                    "macs": int(float(layer["MAC Count"])),
                    "utilisation_percent": float(layer["Util% (MAC)"]),
                    "name": layer["Name"],
                }
                for layer in layers
            ],
            source=source,
            fallbacks=fallbacks,
        )
    except (IndexError, KeyError, ValueError) as problem:
        raise ArtifactError(
            one_line(f"{summary_file.name}: not the report Vela was known to write: {problem!r}")
        ) from (problem)


def operators(path: Path) -> list[Operator]:
    """The operators of a TFLite file, all subgraphs."""
    from ai_edge_litert import schema_py_generated as schema

    kinds = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    types = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    model = schema.Model.GetRootAs(path.read_bytes(), 0)
    found = []
    for graph in (model.Subgraphs(i) for i in range(model.SubgraphsLength())):
        for operator in (graph.Operators(i) for i in range(graph.OperatorsLength())):
            code = model.OperatorCodes(operator.OpcodeIndex())
            kind = kinds[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            if kind == "CUSTOM":
                kind += ":" + (code.CustomCode() or b"").decode(errors="replace")
            name = graph.Tensors(operator.Outputs(0)).Name() if operator.OutputsLength() else b""
            used = graph.Tensors(operator.Inputs(0)).Type() if operator.InputsLength() else -1
            found.append(Operator(kind, (name or b"").decode(errors="replace"), types.get(used, "none").lower()))
    return found
