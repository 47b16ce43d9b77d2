"""Checks of what NVIDIA's cards need: the driver, CUDA's libraries, the cards themselves."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

from moshi_ctl import devices, gpu
from moshi_ctl.devices import CUDA
from moshi_ctl.doctor.findings import Finding, Situation, Status, failure, ok, warning
from moshi_ctl.env import CUDA_DEVICE_ORDER
from moshi_ctl.gpu import Gpu, GpuProcess, Problem
from moshi_ctl.units import dotted, memory

# Of CUDA 13, by the names that Linux's loader knows them by.
_RUNTIME_LIBRARIES: Final = (
    "libcudart.so.13",
    "libcublas.so.13",
    "libcublasLt.so.13",
    "libcurand.so.10",
)
_DRIVER_LIBRARY: Final = "libcuda.so.1"


def driver(situation: Situation) -> list[Finding]:
    """Whether NVIDIA's driver is there and new enough."""
    name = "NVIDIA driver"
    gpus = situation.gpus
    needed = CUDA in situation.accelerators
    absent = _no_driver(situation)
    if absent is not None:
        if needed:
            return [failure(name, absent.message, absent.hint)]
        if absent.message == gpu.NO_DRIVER:
            return [ok(name, "none")]
        return [warning(name, absent.message, absent.hint)]
    cuda = "unknown" if gpus.cuda_version is None else dotted(gpus.cuda_version)
    message = f"{gpus.driver_version or 'unknown'}, serves CUDA {cuda}"
    obstacle = devices.driver_obstacle(gpus)
    if obstacle is None:
        return [ok(name, message)]
    status = Status.FAILURE if needed else Status.WARNING
    return [Finding(name, status, obstacle.message, obstacle.hint)]


def cuda_libraries(situation: Situation) -> list[Finding]:
    """Whether the libraries are there that a build with CUDA loads."""
    name = "CUDA libraries"
    needed = CUDA in situation.accelerators
    if not needed and not situation.gpus.found:
        return [ok(name, "not needed by this build")]
    if sys.platform != "linux":
        return [ok(name, f"not looked for on {sys.platform}")]
    places = {library: _place_of(library) for library in (*_RUNTIME_LIBRARIES, _DRIVER_LIBRARY)}
    found = ", ".join(f"{library} ({place})" for library, place in places.items() if place)
    missing = [library for library, place in places.items() if place is None]
    if not needed:
        rest = f"; a build with CUDA would lack {', '.join(missing)}" if missing else ""
        return [ok(name, f"not needed by this build{rest}")]
    if not missing:
        return [ok(name, found)]
    remedies = []
    if set(missing) - {_DRIVER_LIBRARY}:
        remedies.append(
            "install the runtime libraries of CUDA 13, such as the packages nvidia-cuda-runtime, "
            "nvidia-cublas and nvidia-curand"
        )
    if _DRIVER_LIBRARY in missing:
        remedies.append(
            f"{_DRIVER_LIBRARY} comes with the NVIDIA driver; a container gets it with `--gpus all`"
        )
    message = f"not found: {', '.join(missing)}{f'; found: {found}' if found else ''}"
    return [failure(name, message, "; ".join(remedies))]


def cards(situation: Situation) -> list[Finding]:
    """Each card: what it is, what is free, and what keeps models from using it."""
    gpus = situation.gpus
    if _no_driver(situation) is not None:
        return [ok("cards", "none")]
    # The driver has a line of its own.
    apart_from_driver = replace(gpus, cuda_version=None)
    findings = []
    for card in gpus.found:
        obstacle = devices.why_not(
            CUDA, situation.accelerators, apart_from_driver, card.compute_capability
        )
        findings.append(_card(card, situation.reserve_bytes, obstacle))
    order = os.environ.get(CUDA_DEVICE_ORDER.name, gpu.BY_PCI_BUS)
    if len(gpus.found) > 1 and order != gpu.BY_PCI_BUS:
        findings.append(
            warning(
                "cards",
                f"{CUDA_DEVICE_ORDER.name}={order}: CUDA may number the cards differently than "
                "they are here",
                f"unset {CUDA_DEVICE_ORDER.name}, or set it to {gpu.BY_PCI_BUS}",
            )
        )
    findings += [warning("cards", problem.message, problem.hint) for problem in gpus.problems]
    return findings


def _no_driver(situation: Situation) -> Problem | None:
    """Why NVIDIA's driver says nothing, if it does not."""
    gpus = situation.gpus
    says_nothing = gpus.driver_version is None and gpus.cuda_version is None and not gpus.found
    return gpus.problems[0] if says_nothing and gpus.problems else None


def _place_of(library: str) -> str | None:
    """Where a library is, in a few words; None where it is not."""
    try:
        ctypes.CDLL(library)
    except OSError:
        pass
    else:
        return "the system's"
    # NVIDIA's packages have no code at their top, only folders of one name.
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        if any(Path(folder).glob(f"*/lib/{library}")):
            return "in NVIDIA's packages"
    return None


def _card(card: Gpu, reserve_bytes: int, obstacle: Problem | None) -> Finding:
    facts = [
        f"{card.device} {card.name}",
        f"compute capability {dotted(card.compute_capability)}",
        f"{memory(card.free_bytes)} of {memory(card.total_bytes)} free",
    ]
    if card.temperature_c is not None:
        facts.append(f"{card.temperature_c} °C")
    if card.power_w is not None:
        facts.append(f"{card.power_w:.0f} W")
    if card.processes:
        facts.append(f"held by {', '.join(map(_process, card.processes))}")
    warnings: list[tuple[str, str | None]] = []
    if card.free_bytes < reserve_bytes:
        warnings.append(
            (
                f"nearly full: {memory(reserve_bytes)} are kept in reserve",
                "end programs that hold its memory",
            )
        )
    if obstacle is not None:
        warnings.append((obstacle.message, obstacle.hint))
    if not warnings:
        return ok("card", ", ".join(facts))
    message = "; ".join([", ".join(facts), *(why for why, _ in warnings)])
    remedies = [remedy for _, remedy in warnings if remedy]
    return warning("card", message, "; ".join(remedies) or None)


def _process(process: GpuProcess) -> str:
    facts = [process.name or "name unknown"]
    if process.used_bytes is not None:
        facts.append(memory(process.used_bytes))
    return f"process {process.pid} ({', '.join(facts)})"
