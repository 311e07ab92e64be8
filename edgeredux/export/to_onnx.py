"""ONNX through torch.onnx (dynamo), with Optimum's input, output and axis names."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.errors import ArtifactError, ModelError, one_line
from edgeredux.export.agreement import check_agreement, fixed_axes, removed_on_failure
from edgeredux.export.flat import Flat, prepared
from edgeredux.model import Model
from edgeredux.seams import ExportJob, Feed

# A protobuf message ends at 2 GiB; weights beyond this go to <file>.data, which leaves room for the graph itself.
INLINE_LIMIT_BYTES = 2**31 - 2**26


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TorchOnnx:
    """Export by torch.onnx.export(dynamo=True).

    Axes that the model names (batch, sequence) stay dynamic unless the job fixes them. The file holds the operators,
    the weights under their state_dict names and nothing of the machine it was made on; same model, same bytes.
    """

    opset: int = Field(default=18, ge=18, le=23)  # 18 is what torch.onnx writes natively and every runtime reads
    # Attention as plain MatMul, Add, Softmax: a quarter fewer nodes than scaled_dot_product_attention decomposes to
    # (which guards every Softmax against NaN), and the form that graph optimisers look for.
    eager_attention: bool = True

    format: ClassVar[Format] = "onnx"

    def check(self, model: Model) -> None:
        """Any model can be tried: what torch.export cannot trace is known only by tracing."""

    def export(self, job: ExportJob) -> Change:
        """Write job.out (and job.out.data beyond 2 GB). Raises ModelError when the module cannot be traced."""
        model, fixed = job.model, fixed_axes(job)
        with removed_on_failure(job.out, data_beside(job.out)):
            graph = self._trace(job, fixed)
            name_shapes(graph, model.axes, fixed)
            write(graph, job.out)
            agreement = check_agreement(model, job.samples, job.out, job.log)
        dynamic = sorted({axis for axes in model.axes.values() for axis in axes if axis} - set(fixed))
        return Change(
            step="torch-onnx",
            changed=True,
            why=f"torch.onnx {torch.__version__.split('+')[0]}, opset {self.opset}, "
            + (f"dynamic {' and '.join(dynamic)}" if dynamic else "all shapes fixed"),
            details={"parity": agreement, **describe(job.out)},
        )

    def _trace(self, job: ExportJob, fixed: Mapping[str, int]) -> ir.Model:
        model = job.model
        dynamic = tuple(
            {index: axis for index, axis in enumerate(model.axes[name]) if axis is not None and axis not in fixed}
            for name in model.input_names
        )
        feed = traceable(job.samples[0], model, fixed)
        args = tuple(torch.from_numpy(feed[name]) for name in model.input_names)
        with quiet(job.log), prepared(model.module, self.eager_attention), torch.inference_mode():
            try:
                program = torch.onnx.export(
                    Flat(model),
                    args,
                    dynamo=True,
                    opset_version=self.opset,
                    input_names=list(model.input_names),
                    output_names=list(model.output_names),
                    dynamic_shapes=(dynamic,) if any(dynamic) else None,
                    external_data=False,
                    verbose=False,
                )
            except Exception as problem:
                raise ModelError(
                    one_line(f"model {model.name}: torch.onnx cannot export it: {problem} (log: {job.log})", 400)
                ) from problem
        assert program is not None
        return program.model


@contextmanager
def quiet(log: Path) -> Iterator[None]:
    """What the exporter prints, warns and logs goes to the log file."""
    handler = logging.FileHandler(log, encoding="utf-8")
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir", "torch.onnx")]
    before = [(logger, logger.handlers[:], logger.propagate) for logger in loggers]
    with log.open("a", encoding="utf-8") as sink, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for logger in loggers:
            logger.handlers, logger.propagate = [handler], False
        try:
            with redirect_stdout(sink), redirect_stderr(sink):
                yield
        finally:
            for logger, handlers, propagate in before:
                logger.handlers, logger.propagate = handlers, propagate
            handler.close()
            sink.writelines(f"{item.category.__name__}: {item.message}\n" for item in caught)


def traceable(feed: Feed, model: Model, fixed: Mapping[str, int]) -> Feed:
    """The feed with every dynamic axis at 2 or more: torch.export takes a size of 1 for a constant."""
    grown = {}
    for name in model.input_names:
        value = feed[name]
        for index, axis in enumerate(model.axes[name]):
            if axis is not None and axis not in fixed and value.shape[index] == 1:
                value = np.repeat(value, 2, axis=index)
        grown[name] = value
    return grown


def name_shapes(graph: ir.Model, axes: Mapping[str, tuple[str | None, ...]], fixed: Mapping[str, int]) -> None:
    """Give inputs and outputs the axis names of the model, weights their state_dict names, and drop all metadata."""
    for value in [*graph.graph.inputs, *graph.graph.outputs]:
        assert value.name is not None
        if value.shape is None or value.name not in axes:
            continue
        dims = [
            found if axis is None else fixed.get(axis, axis)
            for axis, found in zip(axes[value.name], value.shape, strict=True)
        ]
        value.shape = ir.Shape(dims)
    for name in list(graph.graph.initializers):
        short = name.removeprefix("wrapped.")
        if short != name and short not in graph.graph.initializers:
            graph.graph.initializers[name].name = short
    common.ClearMetadataAndDocStringPass()(graph)
    graph.metadata_props.clear()
    graph.graph.metadata_props.clear()
    for value in [*graph.graph.inputs, *graph.graph.initializers.values()]:
        value.metadata_props.clear()
        value.doc_string = None
    for node in graph.graph.all_nodes():
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None


def write(graph: ir.Model, out: Path) -> None:
    """Save and check the file. Weights beyond INLINE_LIMIT_BYTES go to <file>.data beside it."""
    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value is not None)
    ir.save(graph, out, external_data=data_beside(out).name if size > INLINE_LIMIT_BYTES else None)
    try:
        onnx.checker.check_model(str(out), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as problem:
        raise ArtifactError(one_line(f"{out.name}: the exported graph is not valid ONNX: {problem}", 300)) from problem


def data_beside(out: Path) -> Path:
    """Where the external weights of `out` lie."""
    return out.with_name(out.name + ".data")


def describe(out: Path) -> dict[str, Any]:
    """bytes_after of the file with its external weights, operators (count by type), parameters."""
    graph = onnx.load(out, load_external_data=False).graph
    data = data_beside(out)
    return {
        "bytes_after": out.stat().st_size + (data.stat().st_size if data.is_file() else 0),
        "operators": dict(sorted(Counter(node.op_type for node in graph.node).items())),
        "nodes": len(graph.node),
    }
