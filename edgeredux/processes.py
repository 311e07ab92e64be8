"""Several processes that hold other batches of the calibration data each and prune one model alike.

Who starts them is not our business: `accelerate launch` does, with the backend and the devices of its own choice.

    edgeredux.prune(model, method="sparsegpt", data=batches, processes=Accelerated())

in a script that is started by `accelerate launch --multi_gpu --num_processes 2 script.py` (the way to more than one
process without MPI on a machine without a GPU, too: they then talk through gloo).

Every process gives the same model and the same data; each passes its share of the batches through the model, what they
observe is summed, and all of them solve alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from edgeredux.errors import DataError, EnvironmentProblem

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class Processes(Protocol):
    """The processes that work together, seen from one of them."""

    @property
    def count(self) -> int:
        """How many there are."""

    @property
    def index(self) -> int:
        """Which one this is, from 0."""

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of what all processes give, elementwise, bit for bit the same in all of them."""


class Alone:
    """One process."""

    count = 1
    index = 0

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The value itself."""
        return value


ALONE = Alone()


class Accelerated:
    """The processes that `accelerate launch` started. Raises EnvironmentProblem where accelerate is not installed."""

    def __init__(self, accelerator: Any = None) -> None:
        """`accelerator`: an accelerate.Accelerator, made here when not given."""
        if accelerator is None:
            try:
                from accelerate import Accelerator
            except ImportError as problem:
                raise EnvironmentProblem(
                    "several processes need accelerate: pip install 'edgeredux[scale]'"
                ) from problem
            import torch

            accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self._accelerator = accelerator

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self._accelerator.num_processes)

    @property
    def index(self) -> int:
        """Which one this is, from 0."""
        return int(self._accelerator.process_index)

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """See Processes; summed where the backend can, on the accelerator's device."""
        summed: torch.Tensor = self._accelerator.reduce(value.to(self._accelerator.device), reduction="sum")
        return summed.to(value.device)


def share_of(processes: Processes, batches: Sequence[T], where: str) -> Sequence[T]:
    """This process' batches: every count-th, from its index. Raises DataError where one would get none."""
    if processes.count == 1:
        return batches
    if len(batches) < processes.count:
        raise DataError(
            f"{where}: {len(batches)} calibration batches cannot be shared by {processes.count} processes; give at "
            "least one each"
        )
    return batches[processes.index :: processes.count]
