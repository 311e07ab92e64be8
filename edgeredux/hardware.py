"""What a target file says of a device's hardware: every figure with its unit and the source it is from.

A figure nobody published, or that was not read, is left out and named under `unknown` with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field

Unit: TypeAlias = Literal["MHz", "GHz", "GOP/s", "GB/s", "KB", "MB", "GB", "MAC/cycle", "version", "W"]
Dtype: TypeAlias = Literal["float64", "float32", "tf32", "float16", "bfloat16", "float8", "int16", "int8", "int4"]
Group: TypeAlias = Literal["isa", "cores", "peak", "bandwidth", "caches", "memory"]
# What a complete hardware section says, or says why not.
GROUPS: tuple[Group, ...] = get_args(Group)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(_Section):
    """A number. `source` is the name of a line under the file's `sources`; KB, MB, GB of memory count in 1024s."""

    value: Annotated[float, Field(gt=0)]
    unit: Unit
    source: str


class Named(_Section):
    """Something that has a name and no number, such as an instruction set."""

    value: str
    source: str


class Core(_Section):
    """Cores of one kind with the highest clock they run at."""

    name: str
    count: Annotated[int, Field(ge=1)]
    clock: Figure | None = None
    source: str


class Hardware(_Section):
    """A device by its data sheet.

    `peak` is by dtype, multiply and add counted as two, dense; `bandwidth`, `caches` and `memory` are by the name of
    the memory ("dram", "l2"). Caches per core say so in their name ("l2_per_core").
    """

    isa: Named | None = None
    cores: list[Core] = []
    peak: dict[Dtype, Figure] = {}
    bandwidth: dict[str, Figure] = {}
    caches: dict[str, Figure] = {}
    memory: dict[str, Figure] = {}
    macs_per_cycle: Figure | None = None
    clock: Figure | None = None  # of an accelerator
    htp_arch: Figure | None = None  # Hexagon's version
    unknown: dict[Group, str] = {}  # what is left out, and why

    def sourced(self) -> Iterator[tuple[str, str]]:
        """(place, source) of every figure."""
        for name in ("isa", "macs_per_cycle", "clock", "htp_arch"):
            single: Figure | Named | None = getattr(self, name)
            if single is not None:
                yield name, single.source
        for index, core in enumerate(self.cores):
            yield f"cores.{index}", core.source
            if core.clock is not None:
                yield f"cores.{index}.clock", core.clock.source
        for name in ("peak", "bandwidth", "caches", "memory"):
            group: dict[str, Figure] = getattr(self, name)
            for key, figure in group.items():
                yield f"{name}.{key}", figure.source
