"""Units of memory, and how sizes are written."""

from __future__ import annotations

from typing import Final

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
