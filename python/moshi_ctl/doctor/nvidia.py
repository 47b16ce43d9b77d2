"""Checks of what NVIDIA's cards need: the driver, and the cards themselves."""

from __future__ import annotations

import os
from dataclasses import replace

from moshi_ctl import devices, gpu
from moshi_ctl.devices import CUDA
from moshi_ctl.doctor.findings import Finding, Situation, ok, warning
from moshi_ctl.env import CUDA_DEVICE_ORDER
from moshi_ctl.gpu import Gpu, GpuProcess, Problem
from moshi_ctl.units import dotted, memory


def driver(situation: Situation) -> list[Finding]:
    """Whether NVIDIA's driver is there, new enough, and lets programs compute."""
    name = "NVIDIA driver"
    gpus = situation.gpus
    absent = _no_driver(situation)
    if absent is not None:
        if absent.message == gpu.NO_DRIVER:
            return [ok(name, "none")]
        return [warning(name, absent.message, absent.hint)]
    cuda = "unknown" if gpus.cuda_version is None else dotted(gpus.cuda_version)
    obstacle = devices.driver_obstacle(gpus)
    if obstacle is not None:
        return [warning(name, obstacle.message, obstacle.hint)]
    return [ok(name, f"{gpus.driver_version or 'unknown'}, serves CUDA {cuda}")]


def cards(situation: Situation) -> list[Finding]:
    """Each card: what it is, what is free, and what keeps models from using it."""
    gpus = situation.gpus
    if _no_driver(situation) is not None:
        return [ok("cards", "none")]
    # The driver has a line of its own.
    apart_from_driver = replace(gpus, cuda_version=None, cuda_problem=None)
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
