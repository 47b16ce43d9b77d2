"""Checks of the machine and of this build: Python, wheel, processor, memory."""

from __future__ import annotations

import platform
import struct
import sys
from typing import Final

from moshi_ctl import __version__, _native, env, units
from moshi_ctl.doctor.findings import Finding, Situation, failure, ok, warning
from moshi_ctl.env import MOSHI_INSTRUCTIONS, MOSHI_THREADS
from moshi_ctl.errors import UsageError

OLDEST_PYTHON: Final = (3, 10)

_PORTABLE: Final = "portable"
_BITS_PER_BYTE: Final = 8


def python(_: Situation) -> list[Finding]:
    """Whether this Python is one that the extension is made for."""
    version = platform.python_version()
    bits = struct.calcsize("P") * _BITS_PER_BYTE
    message = f"{platform.python_implementation()} {version}, {bits} bit, {platform.platform()}"
    if sys.version_info < OLDEST_PYTHON:
        oldest = units.dotted(OLDEST_PYTHON)
        return [
            failure("Python", f"{message}: older than {oldest}", f"use Python {oldest} or newer")
        ]
    if bits != 64:
        return [failure("Python", f"{message}: models need 64 bit", "use a 64-bit Python")]
    return [ok("Python", message)]


def wheel(situation: Situation) -> list[Finding]:
    """Which build this is. That its extension can be loaded is known: this module needs it."""
    info = _native.build_info()
    sort = f"with {' and '.join(situation.accelerators)}" if situation.accelerators else "CPU build"
    message = (
        f"moshi-ctl {__version__}, {sort}, commit {info['git_describe']} of {info['git_date']}, "
        f"built {info['build_date']}"
    )
    if info["version"] != __version__:
        return [
            warning(
                "wheel",
                f"{message}; but its extension is of version {info['version']}",
                "install it anew: its two halves belong together",
            )
        ]
    return [ok("wheel", message)]


def processor(_: Situation) -> list[Finding]:
    """Which kernels run on this CPU, and in how many threads."""
    try:
        threads = threads_from_environment()
    except UsageError:  # which another check reports
        threads = None
    facts = _native.processor(threads)
    used, best = facts["instructions"], facts["available_instructions"][0]
    message = f"{used}, {units.counted(facts['threads'], 'thread')} a step"
    if used == _PORTABLE:
        message += ": portable code is about ten times slower than AVX2"
    if used != best:
        message += f"; {MOSHI_INSTRUCTIONS.name} keeps this CPU from using {best}"
        return [warning("CPU", message, f"unset {MOSHI_INSTRUCTIONS.name}")]
    if used == _PORTABLE:
        remedy = "use a CPU with AVX2, or with Arm's dot product"
        return [warning("CPU", message, remedy)]
    return [ok("CPU", message)]


def threads_from_environment() -> int | None:
    """What `MOSHI_THREADS` says, or None when it is not set.

    Raises:
        UsageError: When it is no number of threads.
    """
    return env.whole_number_of(MOSHI_THREADS, 1, _native.MAX_THREADS, "threads")


def memory(situation: Situation) -> list[Finding]:
    """What memory there is."""
    ram = situation.ram
    where = "this container has" if ram.is_limited else "this machine has"
    total, free = units.memory(ram.total_bytes), units.memory(ram.available_bytes)
    return [ok("memory", f"{where} {total}, of which {free} can be had")]
