"""The agent's result as a device sent it: checked before anything of it is believed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeredux.errors import ArtifactError, EnvironmentProblem, StorageError, one_line

T = TypeVar("T", bound=BaseModel)
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Said(BaseModel):
    model_config = ConfigDict(frozen=True)


class Alone(_Said):
    """Of a file in a process of its own: peak memory, and who ran its operators."""

    runtime: str
    memory_mb: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    how: str
    placement: dict[str, int]
    operators: dict[str, int] = {}
    fallbacks: tuple[str, ...] = ()


class Spent(_Said):
    """Energy of one run, and of how many updates of the sensor."""

    mj: _Positive
    n: Annotated[int, Field(ge=1)]
    how: str


class NotTaken(_Said):
    """Why there is no energy."""

    missing: Annotated[str, Field(min_length=1)]


class Machine(_Said):
    """What `measure` judges the run by; what else the device said of itself stays beside it."""

    model_config = ConfigDict(frozen=True, extra="allow")
    cpu_model: str
    cores: Annotated[int, Field(ge=1)]
    others_cores: float | None = None
    steal_share: float | None = None
    throttle_events: int | None = None

    def facts(self) -> dict[str, Any]:
        """What was said, nothing that was not."""
        return self.model_dump(exclude_unset=True)


class Together(_Said):
    """Of all files in turns."""

    samples_ms: dict[str, tuple[_Positive, ...]]
    machine: Machine
    energy: dict[str, Spent | NotTaken]
    python: str


class Outputs(_Said):
    """Of a job that was done. `outputs`: file and SHA-256 by label."""

    outputs: dict[str, tuple[str, str]]


class Result(Outputs):
    """Of a job that measured."""

    alone: dict[str, Alone]
    together: Together


class Answer(_Said):
    """Who made one file's outputs."""

    runtime: str
    python: str
    cpu_model: str


class Answers(Outputs):
    """Of a job whose outputs alone were wanted."""

    answers: dict[str, Answer]


class NoRuntime(EnvironmentProblem):
    """The device has no runtime for the file."""


def read(content: bytes, labels: Iterable[str], repeats: int, host: str) -> Result:
    """The result, with every label and every sample in it.

    Raises what a job's error stands for (ArtifactError, StorageError, EnvironmentProblem), EnvironmentProblem on an
    answer that is none.
    """
    result = _read(Result, content, host)
    shared = result.together
    for what, found in (
        ("memory", result.alone),
        ("latency", shared.samples_ms),
        ("energy", shared.energy),
        ("outputs", result.outputs),
    ):
        if set(found) != set(labels):
            raise EnvironmentProblem(f"{host}: the agent's result has {what} of other files than were sent")
    if any(len(samples) != repeats for samples in shared.samples_ms.values()):
        raise EnvironmentProblem(f"{host}: the agent's result has another number of samples than {repeats}")
    return result


def read_answers(content: bytes, labels: Iterable[str], host: str) -> Answers:
    """The same for a job whose outputs alone were wanted."""
    result = _read(Answers, content, host)
    if set(result.answers) != set(labels) or set(result.outputs) != set(labels):
        raise EnvironmentProblem(f"{host}: the agent's result has answers of other files than were sent")
    return result


def _read(kind: type[T], content: bytes, host: str) -> T:
    try:
        said = json.loads(content)
        if isinstance(said, dict) and "error" in said:
            raise _error(f"{host}: {one_line(said['error'])}", said.get("kind"))
        return kind.model_validate(said)
    except (ValueError, RecursionError) as problem:
        first = problem.errors()[0] if isinstance(problem, ValidationError) else None
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(problem)
        raise EnvironmentProblem(one_line(f"{host}: the agent's result is none: {why}", 300)) from problem


def _error(message: str, kind: Any) -> Exception:
    if kind == "runtime":
        return NoRuntime(message)
    return StorageError(message) if kind == "no_space" else ArtifactError(message)
