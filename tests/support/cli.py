"""Running `moshi-ctl` as its users do: as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

COMMAND = [sys.executable, "-m", "moshi_ctl"]
TIMEOUT_S = 60.0

# Becomes the program after it has limited itself.
_LIMITED = """
import os, resource, sys
for name, limit in (wish.split("=") for wish in sys.argv[1].split(",")):
    resource.setrlimit(getattr(resource, name), (int(limit), int(limit)))
os.execv(sys.argv[2], sys.argv[2:])
"""

# Whatever the developer's shell has set must not reach the program under test.
_OURS = (
    "MOSHI_",
    "BETTER_AUTH_SECRET",
    "HF_",
    "HUGGING_FACE_",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "OTEL_",
)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    # No home of the developer's either: that is where tokens and caches are.
    return {**kept, "NO_COLOR": "1", "HF_HOME": "/nonexistent", **(extra or {})}


def command(address_space_bytes: int | None = None, open_files: int | None = None) -> list[str]:
    """What starts the program; with limits it gets no more memory or file descriptors than that."""
    limits = {"RLIMIT_AS": address_space_bytes, "RLIMIT_NOFILE": open_files}
    given = [f"{name}={limit}" for name, limit in limits.items() if limit is not None]
    return [sys.executable, "-c", _LIMITED, ",".join(given), *COMMAND] if given else COMMAND


def run(
    *arguments: str | Path,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
    address_space_bytes: int | None = None,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command(address_space_bytes), *map(str, arguments)],
        cwd=cwd,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        stdin=subprocess.DEVNULL,
    )
