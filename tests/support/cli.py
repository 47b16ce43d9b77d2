"""Running `moshi-ctl` as its users do: as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

COMMAND = [sys.executable, "-m", "moshi_ctl"]
TIMEOUT_S = 60.0

# Whatever the developer's shell has set must not reach the program under test.
_OURS = (
    "MOSHI_",
    "BETTER_AUTH_SECRET",
    "HF_",
    "HUGGING_FACE_",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    # No home of the developer's either: that is where tokens and caches are.
    return {**kept, "NO_COLOR": "1", "HF_HOME": "/nonexistent", **(extra or {})}


def run(
    *arguments: str | Path,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        stdin=subprocess.DEVNULL,
    )
