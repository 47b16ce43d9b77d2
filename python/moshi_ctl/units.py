"""Units of memory, and how sizes, counts and versions are written."""

from __future__ import annotations

from typing import Final

BYTES_PER_KIB: Final = 2**10
BYTES_PER_GIB: Final = 2**30
BYTES_PER_MIB: Final = 2**20
"""What users, NVML and `nvidia-smi` call an MB."""

BYTES_PER_GB: Final = 10**9
BYTES_PER_MB: Final = 10**6
BYTES_PER_KB: Final = 10**3


def size(count: int) -> str:
    """Bytes in the unit that leaves the fewest digits, as disks are sold."""
    for unit, name in ((BYTES_PER_GB, "GB"), (BYTES_PER_MB, "MB")):
        if abs(count) >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count / BYTES_PER_KB:.2f} kB"


def memory(count: int) -> str:
    """Bytes of memory in the units of `nvidia-smi` and of every option and variable about it."""
    if count >= BYTES_PER_GIB:
        return f"{count / BYTES_PER_GIB:.2f} GiB"
    if count >= BYTES_PER_MIB:
        return f"{count / BYTES_PER_MIB:.4g} MiB"
    return f"{count / BYTES_PER_KIB:.4g} KiB"


def counted(number: int, one: str, more: str | None = None) -> str:
    """A number of things: of `one`, or else of `more`, which is `one` with an s without it."""
    return f"{number} {one if number == 1 else more or f'{one}s'}"


def dotted(version: tuple[int, int]) -> str:
    """A major and a minor version."""
    return ".".join(map(str, version))
