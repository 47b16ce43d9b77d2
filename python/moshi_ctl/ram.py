"""The memory of the machine, or of the container that this process is in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Ram:
    """Memory that programs share.

    Attributes:
        total_bytes: All there is.
        available_bytes: What can be had without anybody having to give up any.
        is_limited: Whether a control group (a container, a service) allows less than there is.
    """

    total_bytes: int
    available_bytes: int
    is_limited: bool = False


def read(root: Path = Path("/")) -> Ram:
    """What there is now.

    Args:
        root: Where the files of Linux's control groups are looked for.
    """
    import psutil

    memory = psutil.virtual_memory()
    ram = Ram(memory.total, memory.available)
    for group in _control_groups(root):
        limit = group.limit_bytes
        # A limit beyond what there is limits nothing; of the others, the fullest group may have
        # less left than the smallest one.
        if limit is not None and limit < memory.total:
            free = max(0, limit - group.held_bytes)
            ram = Ram(min(ram.total_bytes, limit), min(ram.available_bytes, free), is_limited=True)
    return ram


@dataclass(frozen=True)
class _ControlGroup:
    """A folder of memory accounts, as the kernel's cgroup-v2 and cgroup-v1 documents have them."""

    folder: Path
    limit_file: str
    usage_file: str
    # Pages of files that nobody uses now; the kernel takes them back before it refuses memory.
    cache_key: str

    @property
    def limit_bytes(self) -> int | None:
        return _number(self.folder / self.limit_file)

    @property
    def held_bytes(self) -> int:
        usage = _number(self.folder / self.usage_file) or 0
        cache = 0
        with contextlib.suppress(OSError, ValueError):
            for line in (self.folder / "memory.stat").read_text(encoding="ascii").splitlines():
                key, _, value = line.partition(" ")
                if key == self.cache_key:
                    cache = int(value)
        return max(0, usage - cache)


def _control_groups(root: Path) -> Iterator[_ControlGroup]:
    """The groups that this process is in, and those around them."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            base = root / "sys/fs/cgroup"
            files = ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        here = PurePosixPath(path)
        if not here.is_absolute():
            continue
        for group in (here, *here.parents):
            yield _ControlGroup(base / group.relative_to("/"), *files)


def _number(file: Path) -> int | None:
    try:
        number = int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max" is no number: there is no limit
        return None
    return number if number >= 0 else None
