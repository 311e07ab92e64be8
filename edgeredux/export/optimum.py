"""ONNX through Hugging Face Optimum, where it is installed: it pins an older transformers, so mostly apart."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.errors import EnvironmentProblem, ModelError, one_line
from edgeredux.export.agreement import check_agreement, fixed_axes, removed_on_failure
from edgeredux.export.onnx_file import data_beside, describe, name_shapes, write
from edgeredux.export.quiet import quiet
from edgeredux.model import Model
from edgeredux.seams import ExportJob

# Optimum's own names for what a model is for.
_TASKS = {
    "embedding": "feature-extraction",
    "generic": "feature-extraction",
    "classification": "text-classification",
    "causal-lm": "text-generation",  # without -with-past: no key-value cache, as the other exporters
}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Optimum:
    """Export by optimum.exporters.onnx, which knows some 150 architectures.

    The module object itself is exported, so shapes that pruning changed are the file's. The file loads in
    ORTModelFor...: names are Optimum's. `opset` None takes what Optimum recommends for the architecture.
    """

    opset: int | None = Field(default=None, ge=14, le=23)

    format: ClassVar[Format] = "onnx"

    def check(self, model: Model) -> None:
        """Raise EnvironmentProblem without Optimum, ModelError for a module that is not from transformers."""
        if not installed():
            raise EnvironmentProblem(
                "exporter optimum: Optimum is not installed here. It pins an older transformers, so give it an "
                "environment of its own: tools/optimum_env in the source tree makes .venv-optimum; elsewhere: "
                "python3 -m venv optimum && optimum/bin/pip install 'edgeredux[optimum]'"
            )
        if not model.is_transformers:
            raise ModelError(f"model {model.name}: Optimum exports transformers models only; use exporter torch-onnx")

    def export(self, job: ExportJob) -> Change:
        """Write job.out (and job.out.data beyond 2 GB). Raises ModelError when Optimum cannot export the module."""
        self.check(job.model)
        fixed = fixed_axes(job)
        with removed_on_failure(job.out, data_beside(job.out)):
            with tempfile.TemporaryDirectory(prefix="optimum-", dir=job.out.parent) as folder:
                made = self._convert(job, Path(folder))
                graph = ir.load(made)
                _same_interface(graph, job.model)
                name_shapes(graph, job.model.axes, fixed)
                write(graph, job.out)
            agreement = check_agreement(job.model, job.samples, job.out, job.log)
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("optimum-onnx", "transformers"))
        return Change("optimum", True, versions, {"parity": agreement, **describe(job.out)})

    def _convert(self, job: ExportJob, folder: Path) -> Path:
        from optimum.exporters.onnx import onnx_export_from_model

        module: Any = job.model.module
        before = _settings(module.config)
        with quiet(job.log):
            try:
                onnx_export_from_model(
                    module,
                    folder,
                    opset=self.opset,
                    task=_TASKS[job.model.task],
                    monolith=True,
                    do_validation=False,  # ours compares real inputs of several shapes, and raises
                )
            except Exception as problem:
                raise ModelError(
                    one_line(f"model {job.model.name}: Optimum cannot export it: {problem} (log: {job.log})", 400)
                ) from problem
            finally:
                _restore(module.config, before)
        found = sorted(folder.rglob("*.onnx"))
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "no file"
            raise ModelError(f"model {job.model.name}: Optimum wrote {names}; one ONNX file was expected")
        return found[0]


def installed() -> bool:
    """Whether Optimum's ONNX exporter can be imported."""
    try:
        return importlib.util.find_spec("optimum.exporters.onnx") is not None
    except ModuleNotFoundError:
        return False


def _settings(config: Any) -> Mapping[str, Any]:
    return dict(vars(config))


def _restore(config: Any, before: Mapping[str, Any]) -> None:
    """Optimum moves generation settings out of the config and switches the cache; the caller's model keeps its own."""
    vars(config).clear()
    vars(config).update(before)


def _same_interface(graph: ir.Model, model: Model) -> None:
    """Rename what Optimum calls otherwise, where position and number leave no doubt. Raises ModelError."""
    for what, values, names in (
        ("inputs", graph.graph.inputs, model.input_names),
        ("outputs", graph.graph.outputs, model.output_names),
    ):
        found = [value.name for value in values]
        if set(found) == set(names):
            continue
        if len(found) != 1 or len(names) != 1:
            raise ModelError(
                f"model {model.name}: Optimum's file has {what} {', '.join(map(str, found))}, not {', '.join(names)}"
            )
        values[0].name = names[0]
