"""What a plug-in of each folder must offer. Read this first.

The way of the data: a `Model` goes through `ReduceStep`s, an `Exporter` turns it into an `Artifact`, `Pass`es rewrite
the artifact, a `Runner` profiles the dense and the reduced artifact together on one target, a `Meter` reads energy
meanwhile. Plug-ins are classes; their keyword arguments are their configuration (pydantic dataclasses, extra keys
forbidden), so a recipe is checked by constructing them before any work is done. Each folder's `__init__` has a TABLE
from name to "module:Class"; nothing is imported before it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

from edgeredux.artifact import Change, Format
from edgeredux.processes import ALONE, Processes
from edgeredux.readings import AnyReading

if TYPE_CHECKING:
    import numpy as np

    from edgeredux.model import Model
    from edgeredux.remote.channel import Place

# One batch of inputs or outputs by name, as NumPy arrays.
Feed: TypeAlias = "dict[str, np.ndarray[Any, Any]]"


class Progress(Protocol):
    """Told how far a long piece of work is. Only the CLI draws anything; the default is silent."""

    def __call__(self, text: str, done: float, total: float) -> None: ...


def silent(text: str, done: float, total: float) -> None:
    """Progress that shows nothing."""


@dataclass(frozen=True)
class ReduceContext:
    """What a reduce step may use. Batches are dicts of arrays named as the model's inputs."""

    teacher: Model  # the dense model, never changed
    calibration: Sequence[Feed]
    training: Sequence[Feed]  # a classifier's hold "labels", too, int64 [batch], where the data has them
    seed: int
    threads: int
    scratch: Path  # a folder of this step alone that survives a kill: checkpoints go here
    progress: Progress = silent
    processes: Processes = ALONE  # that hold the same data, and pass a share of it through the model each


@runtime_checkable
class ReduceStep(Protocol):
    """A pruning method, a distillation, a repair: Model in, new Model out, the input untouched."""

    def check(self, model: Model) -> None:
        """Raise RecipeError or ModelError, before any work, when this step cannot be applied to this model."""

    def apply(self, model: Model, context: ReduceContext) -> tuple[Model, Change]:
        """The reduced model and a line saying what changed (parameters, shapes, zeros, losses)."""


@runtime_checkable
class RewritesTokenizer(Protocol):
    """A reduce step after which texts become other token numbers."""

    def same_tokens(self, teacher: Model, student: Model) -> Model:
        """`teacher` as a model of `student`'s tokens, so that both take the same feeds."""


@dataclass(frozen=True)
class ExportJob:
    """One export. `shapes` fixes dimensions by name ({"batch": 1, "sequence": 64}); absent ones stay dynamic."""

    model: Model
    samples: Sequence[Feed]  # real inputs of several shapes, to trace with (first) and to check parity on (all)
    out: Path  # the file to write, suffix .onnx or .tflite; its folder exists
    shapes: Mapping[str, int]
    log: Path  # what third-party tools print goes here, never to the terminal
    options: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Exporter(Protocol):
    """Writes a model file that computes what the PyTorch module computes, and proves it on the samples."""

    format: Format

    def check(self, model: Model) -> None:
        """Raise EnvironmentProblem or ModelError before any work when this exporter cannot be used."""

    def export(self, job: ExportJob) -> Change:
        """Write job.out; details hold parity {passed, max_abs, cosine, tolerance, shapes}. Raises ParityError."""


@dataclass(frozen=True)
class Tolerance:
    """How far a pass may move the outputs: elementwise for exact passes, by cosine for quantising ones.

    Passes when every element satisfies |a-b| <= atol + rtol*|b| (if atol is not None) and the mean cosine per output
    is at least `cosine` (if not None). `reason` says why this is the right tolerance.
    """

    reason: str
    atol: float | None = None
    rtol: float = 0.0
    cosine: float | None = None


@dataclass(frozen=True)
class PassContext:
    """What a pass may use: feeds that calibrate, and where third-party noise goes."""

    calibration: Sequence[Feed]
    log: Path
    scratch: Path
    threads: int = 1
    seed: int = 0


@runtime_checkable
class Pass(Protocol):
    """A graph rewrite, file to file: turns something into bytes or milliseconds, or declines and says why.

    Configuration by constructor. `run` writes `out` only when it returns changed=True. A pass whose files only some
    runners read rightly names them in a class attribute `runners`; a recipe that gives them to another is refused.
    """

    format: Format
    tolerance: Tolerance

    def run(self, source: Path, out: Path, context: PassContext) -> Change: ...


@dataclass(frozen=True)
class ProfileJob:
    """Artifacts to profile together, interleaved in one run on one target. All plain data: it crosses processes."""

    artifacts: Mapping[str, Path]  # "dense", "reduced" (and any other label) -> model file
    latency_feeds: Mapping[str, Sequence[Feed]]  # by label: inputs that latency is taken on, in order, cycled
    quality_feeds: Mapping[str, Sequence[Feed]]  # by label: inputs whose outputs are wanted; empty when none
    options: Mapping[str, Any]  # the target's runtime options
    hardware: Mapping[str, Any]  # the target's hardware section
    threads: int
    repeats: int
    warmup: int
    scratch: Path  # files the runner wants kept are left here and named in DeviceProfile.files
    log: Path
    energy: Mapping[str, Any] = field(default_factory=dict)  # the target's energy section
    latency_model: Mapping[str, Any] | None = None  # the target's, fitted by tools/calibrate
    samples_per_run: int = 1  # model inputs (sentences, images) in one latency feed: throughput counts these
    next_tokens: bool = False  # quality is read off a language model's logits: quality.without_logits may replace them
    target: str = ""  # the target's name
    conditions: Mapping[str, int] = field(default_factory=dict)  # threads, batch, sequence that latency is taken with

    def first_feed(self, label: str) -> Feed:
        """Some input of an artifact, empty when the job has none for it."""
        return next(iter((*self.latency_feeds[label], *self.quality_feeds[label])), {})


@dataclass(frozen=True)
class DeviceProfile:
    """What one artifact did on one target.

    `readings`: latency_ms, throughput_per_s, energy_mj, memory_mb (size and quality are added by the judge).
    `latency_samples`: the raw interleaved milliseconds, same order for every artifact, so that ratios can be paired.
    `outputs`: one Feed per quality feed, or None when this runner does not execute.
    `placement`: operators by execution provider or delegate, e.g. {"CPUExecutionProvider": 312}; `fallbacks` names
    the operators that did not run where the target wants them.
    """

    readings: Mapping[str, AnyReading]
    latency_samples: Sequence[float] = ()
    outputs: Sequence[Feed] | None = None
    outputs_source: Literal["measured", "simulated"] | None = None
    outputs_how: str = ""
    placement: Mapping[str, int] = field(default_factory=dict)
    fallbacks: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)  # anything worth showing: bytes per memory, versions
    files: Mapping[str, Path] = field(default_factory=dict)  # files to keep in the bundle, by the name they get
    machine: Mapping[str, Any] = field(default_factory=dict)  # governor, load, temperatures as readable
    layers: Sequence[Mapping[str, Any]] = ()  # per-layer table where the runner has one


@runtime_checkable
class Runner(Protocol):
    """Executes or simulates artifacts on a target, of the formats that it takes.

    One that never takes a latency says so in a class attribute `untimed`; the target's next runtime is then asked, too.
    """

    formats: ClassVar[tuple[Format, ...]]

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise EnvironmentProblem (with the install command) or TargetError (unknown option) before any work."""

    def profile(self, job: ProfileJob) -> dict[str, DeviceProfile]:
        """One DeviceProfile per artifact label. A silently dropped delegate is an error, not a slower number."""


@runtime_checkable
class NamesDevice(Protocol):
    """A runner of which the target's file does not say which device it measures."""

    def device(self, options: Mapping[str, Any]) -> str:
        """Which one it would be now. What one device gave is never taken for another's."""


@runtime_checkable
class Reaches(Protocol):
    """A runner of another device, to which files can be brought."""

    def reach(self, options: Mapping[str, Any], address: str) -> Place:
        """The way there; `address` as at the command line, empty where options or environment say it.

        Raises TargetError on wrong options, EnvironmentProblem when no device is named.
        """


@runtime_checkable
class Meter(Protocol):
    """Energy used while something ran."""

    def available(self) -> str | None:
        """None when this meter can read here, else the reason why not."""

    def energy_mj(self, work: Callable[[], None], repeats: int) -> AnyReading:
        """Millijoules per call of `work`, idle subtracted; Missing when the sensor gave too few samples."""
