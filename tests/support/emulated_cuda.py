"""Cards that compute although they are not there: a `libcuda.so.1` that runs the engine's kernels
on the processor (rust/emulator), beside the NVML that tells of them.
"""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

from support import fake_nvml

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "rust" / "target" / "release" / "moshi-ctl-emulator"

# CUDA's code of errors that say nothing.
UNKNOWN = 999


def machine(
    folder: Path,
    described: fake_nvml.Machine,
    *,
    memory_mib: int | None = None,
    started: int = 0,
    fails_at: int | None = None,
) -> dict[str, str]:
    """The environment of a process on a machine with cards, the first of which computes.

    Args:
        folder: Where what describes it is written.
        described: What NVML tells.
        memory_mib: What of the card can really be had; None: what NVML tells.
        started: What comes of starting the driver: an error's code, or 0.
        fails_at: From which graph on the card fails; a step has two.
    """
    variables = fake_nvml.machine(folder, described)
    variables |= {
        "LD_LIBRARY_PATH": os.pathsep.join((variables["LD_LIBRARY_PATH"], _library_folder())),
        "EMULATED_CUDA_DRIVER": str(described.cuda),
        "EMULATED_CUDA_STARTED": str(started),
        "EMULATED_CUDA_REPORT": str(report(folder)),
    }
    if fails_at is not None:
        variables["EMULATED_CUDA_FAILS_AT"] = str(fails_at)
    if described.cards:
        card = described.cards[0]
        free = card.total_bytes - card.reserved_bytes - card.used_bytes
        major, minor = card.capability
        variables |= {
            "EMULATED_CUDA_CAPABILITY": f"{major}.{minor}",
            "EMULATED_CUDA_MEMORY_MB": str(memory_mib or free // fake_nvml.MIB),
        }
    return variables


def machine_with_nvml_alone(folder: Path, described: fake_nvml.Machine) -> dict[str, str]:
    """The environment of a process that has NVML without CUDA's library, wherever this is."""
    variables = fake_nvml.machine(folder, described)
    broken = folder / "broken"
    broken.mkdir(exist_ok=True)
    for name in ("libcuda.so", "libcuda.so.1"):
        (broken / name).write_text("no library\n")
    return {
        **variables,
        "LD_LIBRARY_PATH": os.pathsep.join((str(broken), variables["LD_LIBRARY_PATH"])),
    }


def report(folder: Path) -> Path:
    """Where a process on the machine in `folder` tells, when it ends, what it did."""
    return folder / "emulated-cuda"


def counts(folder: Path) -> dict[str, int]:
    """How often the process on the machine in `folder` did what."""
    pairs = (line.split() for line in report(folder).read_text().splitlines())
    return {what: int(count) for what, count in pairs if what != "lookup"}


@cache
def _library_folder() -> str:
    if not PROGRAM.is_file():
        pytest.skip("no driver whose card is the processor: make emulator")
    printed = subprocess.run([PROGRAM], capture_output=True, text=True, check=True)
    return printed.stdout.strip()
