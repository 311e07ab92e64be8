"""The one-line function that trains: `edgeredux.sparse_train(net, data=(images, labels), loss=..., method="rigl")`."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeredux import registry
from edgeredux.errors import DataError, ModelError, RecipeError, unknown
from edgeredux.seams import Feed, Progress, ReduceContext, silent
from edgeredux.wrapping import as_model

if TYPE_CHECKING:
    import torch

    from edgeredux.sparse_training.arrays import AnyData
    from edgeredux.sparse_training.step import SparseTraining


def sparse_train(
    module: torch.nn.Module,
    *,
    data: AnyData,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    method: str | Mapping[str, Mapping[str, Any]] = "rigl",
    zeros: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    exclude: Sequence[str] = (),
    seed: int = 0,
    progress: Progress = silent,
) -> torch.nn.Module:
    """A trained copy of `module` with exact zeros in its Linear and convolution weights; `module` is left alone.

        net = edgeredux.sparse_train(net, data=(images, labels), loss=F.cross_entropy, method="rigl", zeros=0.9)

    `data`: (inputs, targets), and `loss(module(inputs), targets)` is minimised; or a mapping of arrays that are
    forward's keyword arguments, and `loss(outputs, batch)` is, by default the `loss` that a transformers model gives
    where labels are among them; or an iterable of batches of either kind, such as a DataLoader, gone through once.
    First axis = samples. `method`: static, set, rigl, gradual, l1 or group_lasso, or {name: {options}} with the options
    that the step of this name has in a recipe; `zeros` (not of l1 and group_lasso, where they follow from `strength`),
    `steps`, `batch_size` and `learning_rate` are such options, too. Trains on the module's device.

    Raises RecipeError, ModelError or DataError with one line that says what is allowed.
    """
    import torch

    from edgeredux.sparse_training.arrays import INPUTS, TARGETS, as_arrays
    from edgeredux.training.batches import Batches
    from edgeredux.training.trainable import hooks_restored

    step = _step(method, zeros, steps, batch_size, learning_rate, exclude)
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"sparse_train: {type(module).__name__} is no nn.Module")
    device = next((value.device for value in module.parameters()), torch.device("cpu"))
    step = replace(step, device="cuda" if device.type == "cuda" else "cpu", checkpoint_every=step.steps)  # keeps none
    arrays, paired = as_arrays(data)
    if paired and loss is None:
        raise DataError("sparse_train: inputs and targets need a loss, such as torch.nn.functional.cross_entropy")
    count = len(next(iter(arrays.values())))
    order = Batches(
        [{name: value[i : i + 1] for name, value in arrays.items()} for i in range(count)], step.batch_size, seed
    )
    student = as_model(copy.deepcopy(module), [])
    step.check(student)

    def value(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if paired:
            assert loss is not None
            return loss(student.module(batch[INPUTS]), batch[TARGETS])
        outputs = student.module(**batch)
        if loss is not None:
            return loss(outputs, batch)
        own = getattr(outputs, "loss", None)
        if not isinstance(own, torch.Tensor):
            raise DataError("sparse_train: the module gives no loss of its own; pass loss=, or labels in data")
        return own

    def batches(number: int) -> Feed:
        places = order.places(number)
        return {name: array[places] for name, array in arrays.items()}

    with (
        tempfile.TemporaryDirectory(prefix="edgeredux-") as scratch,
        hooks_restored(student.module),
        torch.random.fork_rng(),
    ):
        torch.manual_seed(seed)
        context = ReduceContext(
            teacher=student,
            calibration=(),
            training=(),
            seed=seed,
            threads=torch.get_num_threads(),
            scratch=Path(scratch),
            progress=progress,
        )
        step.run(student, value, batches, context)
    return student.module.to(device)


def _step(
    method: str | Mapping[str, Mapping[str, Any]],
    zeros: float | None,
    steps: int | None,
    batch_size: int | None,
    learning_rate: float | None,
    exclude: Sequence[str],
) -> SparseTraining:
    from edgeredux.sparse_training import TABLE

    if not isinstance(method, str) and len(method) != 1:
        raise RecipeError(f"sparse_train: method is one name with its options, not {len(method)}")
    name, said = (method, {}) if isinstance(method, str) else next(iter(method.items()))
    if name not in TABLE:
        raise RecipeError(unknown("method", name, TABLE, "sparse_train"))
    given = {"zeros": zeros, "steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
    options = {**said, **{key: value for key, value in given.items() if value is not None}}
    if exclude:
        options["exclude"] = tuple(exclude)
    step: SparseTraining = registry.create("reduce step", name, options, "sparse_train")
    return step
