"""TFLite through litert-torch, at fixed shapes, with the model's own input and output names in its signature."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux import isolated
from edgeredux.artifact import Change, Format
from edgeredux.errors import EnvironmentProblem, ModelError, one_line
from edgeredux.export.agreement import check_agreement, fixed_axes, removed_on_failure
from edgeredux.export.flat import prepared
from edgeredux.model import Model
from edgeredux.seams import ExportJob, Feed

_TOOLS = ("litert_torch", "ai_edge_litert")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LitertTorch:
    """Export by litert_torch.convert in a child process.

    Every axis is fixed: what job.shapes leaves open is batch 1 and, for text, the model's max_length. Whole numbers
    go in and out as int32, which is what LiteRT kernels take. `mask_floor` is what attention masks add to hide a
    position; None leaves the lowest float there, which static int8 does not survive (mask_floor.py).
    """

    mask_floor: float | None = Field(default=-40.0, le=-20.0, ge=-1e4)

    format: ClassVar[Format] = "tflite"

    def check(self, model: Model) -> None:
        """Raise EnvironmentProblem without litert-torch, ModelError when the module cannot cross to a child."""
        for name in _TOOLS:
            if importlib.util.find_spec(name) is None:
                raise EnvironmentProblem(
                    f"exporter litert-torch: {name} is not installed: pip install 'edgeredux[tflite]'"
                )
        try:
            pickle.dumps(type(model.module))
        except (pickle.PicklingError, AttributeError) as problem:
            raise ModelError(
                one_line(f"model {model.name}: its class must be importable by name for a TFLite export: {problem}")
            ) from problem

    def export(self, job: ExportJob) -> Change:
        """Write job.out. Raises ModelError when litert-torch cannot convert the module."""
        fixed = all_axes(job)
        complete = replace(job, shapes=fixed)
        fixed_axes(complete)
        with removed_on_failure(job.out):
            said = isolated.call(
                "edgeredux.export.to_tflite:convert",
                {
                    "model": replace(job.model, tokenizer=None, examples=None),
                    "feed": job.samples[0],
                    "out": str(job.out),
                    "mask_floor": self.mask_floor,
                },
                log=job.log,
                what=f"litert-torch, converting {job.model.name}",
            )
            agreement = check_agreement(job.model, job.samples, job.out, job.log)
        sizes = ", ".join(f"{name} {size}" for name, size in sorted(fixed.items()))
        return Change(
            step="litert-torch",
            changed=True,
            why=f"litert-torch {importlib.metadata.version('litert-torch')}" + (f" at {sizes}" if sizes else ""),
            details={"parity": agreement, "bytes_after": job.out.stat().st_size, **said},
        )


def all_axes(job: ExportJob) -> dict[str, int]:
    """A size for every axis of the model: job.shapes, else batch 1 and sequence max_length.

    Raises ModelError for an axis that nobody gave a size.
    """
    sizes = {"batch": 1, "sequence": job.model.max_length, **job.shapes}
    axes = sorted({axis for dims in job.model.axes.values() for axis in dims if axis is not None})
    for axis in axes:
        if axis not in sizes:
            raise ModelError(f"model {job.model.name}: TFLite needs fixed shapes: give shapes: {{{axis}: ...}}")
    return {**{axis: sizes[axis] for axis in axes}, **job.shapes}


class Named(torch.nn.Module):
    """The model as named tensors in, named tensors out: litert-torch takes the signature's names from these."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.wrapped = model.module
        self._model = model

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors of Model.forward by name."""
        return self._model.forward(inputs)


def convert(model: Model, feed: Feed, out: str, mask_floor: float | None) -> dict[str, Any]:
    """The child's part: write the file; answers operators (count by name) and masks_raised (tensor names)."""
    import litert_torch

    from edgeredux.export.mask_floor import count_operators, raise_masks

    inputs = {name: torch.from_numpy(feed[name]) for name in model.input_names}
    with prepared(model.module, eager_attention=True):
        try:
            converted = litert_torch.convert(Named(model).eval(), sample_kwargs=inputs)
        except Exception as problem:
            raise ModelError(
                one_line(f"model {model.name}: litert-torch cannot convert it: {problem}", 400)
            ) from problem
    converted.export(out)
    raised = [] if mask_floor is None else raise_masks(Path(out), mask_floor)
    return {"operators": count_operators(Path(out)), "masks_raised": raised}
