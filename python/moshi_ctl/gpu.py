"""The NVIDIA cards of this machine, as the driver describes them through NVML.

Cards are numbered as NVML does it, by PCI bus. CUDA has an order of its own unless
`CUDA_DEVICE_ORDER` says otherwise: call `number_cards_as_nvml_does` before CUDA starts.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Final

from moshi_ctl import nvml, visible_devices
from moshi_ctl.env import CUDA_DEVICE_ORDER, CUDA_VISIBLE_DEVICES
from moshi_ctl.nvml import Answer, Refusal

NO_DRIVER: Final = "no NVIDIA driver: libnvidia-ml was not found"
"""The message of the problem on machines that never had a driver."""

BY_PCI_BUS: Final = "PCI_BUS_ID"
"""The value of `CUDA_DEVICE_ORDER` that numbers cards as NVML does."""


@dataclass(frozen=True)
class GpuProcess:
    """A process that holds memory of a card.

    Attributes:
        pid: Its number, as the driver knows it; in a container that may be the host's.
        name: Its command, where the driver tells it.
        used_bytes: What it holds of the card's memory, where the driver tells it.
    """

    pid: int
    name: str | None
    used_bytes: int | None


@dataclass(frozen=True)
class Gpu:
    """A card, or an instance of a card in MIG mode, that CUDA lets this process use.

    Attributes:
        device: `cuda:N`, N counting what CUDA lets this process use.
        index: The card's number in NVML and `nvidia-smi`; of an instance, that of its card.
        name: The product's name; "unknown" where the driver does not tell it.
        uuid: `GPU-…` or `MIG-…`, where the driver tells it.
        compute_capability: Major and minor version of what its processors can do.
        total_bytes: Its memory.
        free_bytes: What of it nobody holds.
        used_bytes: What of it processes hold; with drivers before 510, what the driver keeps for
            itself is counted too. Total less free is all that is taken, with any driver.
        processes: Who holds memory, the largest share first and unknown shares last; empty where
            the driver does not tell it.
        temperature_c: In degrees Celsius, where the driver tells it.
        power_w: What it draws now, in watts, where the driver tells it.
        is_mig: Whether it is an instance of a card in MIG mode.
    """

    device: str
    index: int
    name: str
    uuid: str | None
    compute_capability: tuple[int, int]
    total_bytes: int
    free_bytes: int
    used_bytes: int
    processes: tuple[GpuProcess, ...]
    temperature_c: int | None
    power_w: float | None
    is_mig: bool


@dataclass(frozen=True)
class Problem:
    """Why there is no card, or why one is left out.

    Attributes:
        message: What happened, on one line.
        hint: What to do next, where that is known.
    """

    message: str
    hint: str | None


@dataclass(frozen=True)
class Gpus:
    """What there is to compute with besides the CPU.

    Attributes:
        driver_version: The NVIDIA driver's, such as `535.183.01`, where it tells it.
        cuda_version: Major and minor version of the newest CUDA that the driver serves, where it
            tells it.
        found: The cards that CUDA lets this process use and whose memory and compute capability
            are known, in CUDA's order.
        problems: Why there is none, or why others are left out.
        cuda_problem: Why programs can compute on none of those that are found, where NVML has no
            say in that.
    """

    driver_version: str | None
    cuda_version: tuple[int, int] | None
    found: tuple[Gpu, ...]
    problems: tuple[Problem, ...]
    cuda_problem: Problem | None = None


@dataclass(frozen=True)
class _Instance:
    """A MIG instance of a card."""

    handle: Answer
    uuid: str | None
    names: tuple[str, ...]


@dataclass(frozen=True)
class _Card:
    """A card that CUDA counts.

    `handle` is a refusal when the card cannot be opened. `instances` is None unless the card is in
    MIG mode, and a refusal when they cannot be used.
    """

    index: int
    handle: Answer
    name: str | None
    uuid: str | None
    instances: tuple[_Instance, ...] | Refusal | None

    def __str__(self) -> str:
        return f"GPU {self.index} ({self.name})" if self.name else f"GPU {self.index}"


@dataclass(frozen=True)
class _Device:
    """What CUDA may give a number to: a card, or an instance of one."""

    card: _Card
    instance: _Instance | None = None

    def __str__(self) -> str:
        if self.instance is None:
            return str(self.card)
        return f"{self.instance.uuid or 'a MIG instance'} of GPU {self.card.index}"


def number_cards_as_nvml_does() -> None:
    """Makes CUDA, if it starts after this, number the cards as `read` does.

    An order that was set already stays, and its numbers may then differ from those of `read`.
    """
    os.environ.setdefault(CUDA_DEVICE_ORDER.name, BY_PCI_BUS)


def read() -> Gpus:
    """What the driver says now of the cards that CUDA lets this process use.

    Nothing that goes wrong with the driver or a card raises; it is among the problems.
    """
    started = nvml.ask("nvmlInit")
    if isinstance(started, Refusal):
        return Gpus(None, None, (), (_why_not_started(started),))
    try:
        return _read_machine()
    finally:
        nvml.ask("nvmlShutdown")


def _why_not_started(refusal: Refusal) -> Problem:
    if refusal.code == nvml.LIBRARY_NOT_FOUND and isinstance(refusal.cause, OSError):
        if "no such file" not in str(refusal.cause).lower():
            return Problem(f"libnvidia-ml cannot be loaded: {refusal.cause}", nvml.UPDATE_DRIVER)
        hint = "only NVIDIA cards need one; a container with cards starts with `--gpus all`"
        return Problem(NO_DRIVER, None if sys.platform == "darwin" else hint)
    if refusal.code == nvml.DRIVER_NOT_LOADED:
        return Problem(
            "no NVIDIA driver: its kernel module is not loaded",
            "load it with `modprobe nvidia`; after an update of kernel or driver, reboot",
        )
    if refusal.code == nvml.FUNCTION_NOT_FOUND:
        message = "the NVIDIA driver is too old: its libnvidia-ml has no nvmlInitWithFlags"
        return Problem(message, nvml.UPDATE_DRIVER)
    if refusal.code == nvml.VERSION_MISMATCH:
        return Problem(
            "the NVIDIA driver's library and kernel module are of different versions",
            "reboot; in a container, start it anew",
        )
    return Problem(f"NVML cannot be started: {refusal.reason}", refusal.hint)


def _read_machine() -> Gpus:
    driver = nvml.text(nvml.ask("nvmlSystemGetDriverVersion"))
    cuda = _cuda_version()
    count = nvml.ask("nvmlDeviceGetCount")
    if isinstance(count, Refusal):
        problem = Problem(f"cards cannot be counted: {count.reason}", count.hint)
        return Gpus(driver, cuda, (), (problem,))

    problems: list[Problem] = []
    cards = _cards(count, problems)
    if not count:
        which = f"driver {driver}" if driver else "the driver"
        hint = "see whether `lspci` lists it; a container gets cards with `--gpus all`"
        problems.append(Problem(f"no NVIDIA card: {which} finds none", hint))
    found: list[Gpu] = []
    for number, device in enumerate(_devices(cards, problems)):
        facts = _facts(f"cuda:{number}", device)
        if isinstance(facts, Gpu):
            found.append(facts)
        else:
            problems.append(facts)
    return Gpus(driver, cuda, tuple(found), tuple(problems))


def _cuda_version() -> tuple[int, int] | None:
    version = nvml.ask_in_turn(
        ("nvmlSystemGetCudaDriverVersion_v2",), ("nvmlSystemGetCudaDriverVersion",)
    )
    if isinstance(version, Refusal) or version <= 0:
        return None
    return version // 1000, version % 1000 // 10


def _cards(count: int, problems: list[Problem]) -> list[_Card]:
    """The cards that CUDA counts."""
    cards = []
    for index in range(count):
        handle = nvml.ask("nvmlDeviceGetHandleByIndex", index)
        # CUDA passes over cards that this user may not open. Whether it counts one that fails is
        # not known; it keeps its number here, so that no number ever means another card to CUDA.
        if isinstance(handle, Refusal) and handle.code == nvml.NO_PERMISSION:
            message = f"GPU {index}: may not be used: {handle.reason}"
            problems.append(Problem(message, handle.hint))
        elif isinstance(handle, Refusal):
            cards.append(_Card(index, handle, None, None, None))
        else:
            name = nvml.text(nvml.ask("nvmlDeviceGetName", handle))
            uuid = nvml.text(nvml.ask("nvmlDeviceGetUUID", handle))
            cards.append(_Card(index, handle, name, uuid, _instances(handle, uuid)))
    return cards


def _instances(card: Answer, card_uuid: str | None) -> tuple[_Instance, ...] | Refusal | None:
    mode = nvml.ask("nvmlDeviceGetMigMode", card)
    if isinstance(mode, Refusal) or not mode[0]:
        return None
    slots = nvml.ask("nvmlDeviceGetMaxMigDeviceCount", card)
    if isinstance(slots, Refusal):
        return slots
    instances = []
    refusals = []
    for slot in range(slots):
        handle = nvml.ask("nvmlDeviceGetMigDeviceHandleByIndex", card, slot)
        if not isinstance(handle, Refusal):
            instances.append(_instance(handle, card_uuid))
        elif handle.code != nvml.NOT_FOUND:  # which an empty slot answers
            refusals.append(handle)
    return refusals[0] if refusals and not instances else tuple(instances)


def _instance(handle: Answer, card_uuid: str | None) -> _Instance:
    uuid = nvml.text(nvml.ask("nvmlDeviceGetUUID", handle))
    ids = [
        nvml.ask(function, handle)
        for function in ("nvmlDeviceGetGpuInstanceId", "nvmlDeviceGetComputeInstanceId")
    ]
    names = [uuid] if uuid else []
    if card_uuid and not any(isinstance(one, Refusal) for one in ids):
        names.append(f"MIG-{card_uuid}/{ids[0]}/{ids[1]}")
    return _Instance(handle, uuid, tuple(names))


def _devices(cards: list[_Card], problems: list[Problem]) -> list[_Device]:
    """What CUDA gives numbers to, in its order."""
    names = [
        visible_devices.Card(card.uuid, tuple(one.names for one in _usable(card.instances)))
        for card in cards
    ]
    choice = visible_devices.choose(os.environ.get(CUDA_VISIBLE_DEVICES.name), names)
    if choice.complaint and cards:
        hint = f"name cards as `nvidia-smi -L` lists them, or unset {CUDA_VISIBLE_DEVICES.name}"
        problems.append(Problem(choice.complaint, hint))

    devices: list[_Device] = []
    for named in choice.named:
        card = cards[named.card]
        instances = _usable(card.instances)
        if named.instance is not None:
            devices.append(_Device(card, instances[named.instance]))
        elif card.instances is None:
            devices.append(_Device(card))
        elif instances:
            devices += (_Device(card, instance) for instance in instances)
        else:
            problems.append(_no_instance(card))

    # CUDA uses a single MIG instance per process, and no whole card beside it.
    first = next((device for device in devices if device.instance), None)
    if first is None or len(devices) == 1:
        return devices
    others = ", ".join(str(device) for device in devices if device is not first)
    problems.append(
        Problem(
            f"left out: {others}: CUDA gives a process one MIG instance only, here {first}",
            f"choose another one by setting {CUDA_VISIBLE_DEVICES.name} to its name",
        )
    )
    return [first]


def _usable(instances: tuple[_Instance, ...] | Refusal | None) -> tuple[_Instance, ...]:
    return instances if isinstance(instances, tuple) else ()


def _no_instance(card: _Card) -> Problem:
    if isinstance(card.instances, Refusal):
        message = f"{card}: its MIG instances cannot be used: {card.instances.reason}"
        return Problem(message, card.instances.hint)
    return Problem(
        f"{card}: it is in MIG mode and has no instances",
        f"create one with `nvidia-smi mig`, or leave the mode: `nvidia-smi -i {card.index} -mig 0`",
    )


def _facts(number: str, device: _Device) -> Gpu | Problem:
    card = device.card
    if isinstance(card.handle, Refusal):
        return Problem(f"{card}: cannot be opened: {card.handle.reason}", card.handle.hint)
    handle = device.instance.handle if device.instance else card.handle
    memory = nvml.memory(handle)
    if isinstance(memory, Refusal):
        return Problem(f"{device}: memory cannot be read: {memory.reason}", memory.hint)
    # An instance need not know what its card can do.
    capability = nvml.ask_in_turn(
        *(("nvmlDeviceGetCudaComputeCapability", one) for one in (handle, card.handle))
    )
    if isinstance(capability, Refusal):
        message = f"{device}: compute capability cannot be read: {capability.reason}"
        return Problem(message, capability.hint)
    name = nvml.text(nvml.ask("nvmlDeviceGetName", handle)) if device.instance else card.name
    return Gpu(
        device=number,
        index=card.index,
        name=name or "unknown",
        uuid=device.instance.uuid if device.instance else card.uuid,
        compute_capability=capability,
        total_bytes=memory.total,
        free_bytes=memory.free,
        used_bytes=memory.used,
        processes=_processes(handle),
        temperature_c=nvml.temperature_c(handle),
        power_w=nvml.power_w(handle),
        is_mig=device.instance is not None,
    )


def _processes(handle: Answer) -> tuple[GpuProcess, ...]:
    """Who holds memory; a process that computes and draws is listed once."""
    shares: dict[int, int | None] = {}
    for kind in ("Compute", "Graphics", "MPSCompute"):
        function = f"nvmlDeviceGet{kind}RunningProcesses"
        listed = nvml.ask_in_turn((f"{function}_v3", handle), (f"{function}_v2", handle))
        for process in nvml.value(listed) or ():
            known = (shares.get(process.pid), process.usedGpuMemory)
            shares[process.pid] = max((one for one in known if one is not None), default=None)
    processes = (
        GpuProcess(pid, nvml.text(nvml.ask("nvmlSystemGetProcessName", pid)), share)
        for pid, share in shares.items()
    )
    return tuple(sorted(processes, key=lambda process: -(process.used_bytes or 0)))
