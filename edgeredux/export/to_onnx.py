"""ONNX through torch.onnx (dynamo), with Optimum's input, output and axis names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.errors import ModelError, one_line
from edgeredux.export.agreement import check_agreement, fixed_axes, removed_on_failure
from edgeredux.export.flat import Flat, prepared
from edgeredux.export.onnx_file import data_beside, describe, name_shapes, write
from edgeredux.export.quiet import quiet
from edgeredux.model import Model
from edgeredux.seams import ExportJob, Feed


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
