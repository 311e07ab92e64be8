"""The proof every exporter owes: the written file computes what the PyTorch module computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeredux import parity
from edgeredux.errors import DataError, ModelError
from edgeredux.execute import execute
from edgeredux.model import Model
from edgeredux.seams import ExportJob, Feed, Tolerance

# 1e-4 is some 200 times what fp32 kernels differ by on a transformer's outputs, and a tenth of what fp16 would cost.
SAME_FLOAT32 = Tolerance(
    "the same float32 arithmetic; only kernels and the order of additions differ", atol=1e-4, rtol=1e-4, cosine=0.99999
)


def fixed_axes(job: ExportJob) -> dict[str, int]:
    """job.shapes, checked: every name is an axis of the model, every size what the samples have.

    Raises ModelError for a name that the model lacks, DataError for samples of another size or none at all.
    """
    known = sorted({axis for axes in job.model.axes.values() for axis in axes if axis is not None})
    for name, size in job.shapes.items():
        if name not in known:
            raise ModelError(
                f"model {job.model.name}: shape {name!r} is no axis of it. Allowed: {', '.join(known) or 'none'}"
            )
        if size < 1:
            raise ModelError(f"model {job.model.name}: shape {name}={size}: a size is at least 1")
    if not job.samples:
        raise DataError(f"model {job.model.name}: there are no sample inputs to export with and to check parity on")
    for feed in job.samples:
        for name in job.model.input_names:
            if name not in feed:
                raise DataError(f"model {job.model.name}: a sample has no input {name!r}")
            for axis, size in zip(job.model.axes[name], feed[name].shape, strict=True):
                if axis is not None and job.shapes.get(axis, size) != size:
                    raise DataError(f"model {job.model.name}: a sample has {axis} {size}, not {job.shapes[axis]}")
    return dict(job.shapes)


def check_agreement(model: Model, samples: Sequence[Feed], out: Path, log: Path) -> dict[str, Any]:
    """The parity of the file with Model.run over all samples, padding left out. Raises ParityError."""
    expected = [model.run(feed) for feed in samples]
    actual = execute(out, samples, log=log)
    found = parity.compare(expected, actual, SAME_FLOAT32, parity.token_masks(samples))
    return parity.require(found, f"{out.name} and the PyTorch module")


@contextmanager
def removed_on_failure(*paths: Path) -> Iterator[None]:
    """Whatever goes wrong inside, no file is left at `paths`: a file that was not proven must not be found."""
    try:
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise
