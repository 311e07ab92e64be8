"""The processor cores that qemu-user emulates, and what Linux on them says in /proc/cpuinfo.

Runtimes choose their kernels by it: with this machine's own, their detection fails; with another core's, they take
instructions that the core has not. Parts and features: Arm's technical reference manuals (MIDR_EL1) and the kernel's
names for the features of Armv8.0-A (A53, A72) and Armv8.2-A with dot products (A76, Neoverse N1).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias, get_args

Core: TypeAlias = Literal["cortex-a53", "cortex-a72", "cortex-a76", "neoverse-n1", "max"]
_V8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_V82 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs"


class _Said(NamedTuple):
    part: int
    features: str


_SAID: dict[str, _Said] = {
    "cortex-a53": _Said(0xD03, _V8),
    "cortex-a72": _Said(0xD08, _V8),
    "cortex-a76": _Said(0xD0B, _V82),
    "neoverse-n1": _Said(0xD0C, _V82),
    # No processor that is made: everything that qemu knows. It says what an A76 says, and has more.
    "max": _Said(0xD0B, _V82),
}
NAMES: tuple[str, ...] = get_args(Core)
COUNT = 4


def cpuinfo(core: str) -> str:
    """The text of /proc/cpuinfo for `COUNT` such cores."""
    said = _SAID[core]
    return "".join(
        f"processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: {said.features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {said.part:#x}\nCPU revision\t: 1\n\n"
        for number in range(COUNT)
    )
