"""What models can run on here, and which of it a module gets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from moshi_ctl import _native, gpu, ram
from moshi_ctl.errors import UsageError
from moshi_ctl.gpu import Gpu, GpuProcess, Gpus, Problem
from moshi_ctl.ram import Ram
from moshi_ctl.units import BYTES_PER_MIB, dotted

CPU: Final = "cpu"
METAL: Final = "metal"
CUDA: Final = "cuda"
FIRST_CUDA: Final = "cuda:0"

# The CUDA whose compiler makes the kernels; drivers serve that and older ones. The engine asks for
# the same (rust/engine/src/cuda/driver.rs).
REQUIRED_CUDA: Final = (12, 0)
REQUIRED_DRIVER: Final = 525
# Turing: what the kernels are compiled for, and newer cards compile on.
LEAST_COMPUTE_CAPABILITY: Final = (7, 5)

# Of a Mac's memory, what Metal lets its graphics processor use.
_METAL_SHARE: Final = 0.75

_BUILDS: Final = {
    CUDA: "builds for Linux on x86-64 have it; elsewhere build one, with NVRTC_LIBRARY set",
    METAL: "build one with the feature metal; none is published yet",
}

_MEND_DRIVER: Final = (
    "install the NVIDIA driver anew, or look at what it says with `dmesg`; a container gets it "
    "with `--gpus all` and the driver capability `compute`"
)

_ON_THE_CPU: Final = (
    "expect a few streams: two recent cores hold up to eight of STT 1B; add --device cpu if that "
    "is what you want, and this warning goes away"
)


@dataclass(frozen=True)
class Device:
    """Something with memory that models run on.

    Attributes:
        name: `cpu`, `cuda:N` or `metal`.
        title: What it is, for people.
        total_bytes: Its memory.
        free_bytes: What of it can be had now.
        compute_capability: Of a CUDA device.
        processes: Who holds memory of a card, where that is known.
        is_simulated: Whether it exists only in what the user said.
    """

    name: str
    title: str
    total_bytes: int
    free_bytes: int
    compute_capability: tuple[int, int] | None = None
    processes: tuple[GpuProcess, ...] = ()
    is_simulated: bool = False


@dataclass(frozen=True)
class Choice:
    """A device for a module.

    Attributes:
        device: The device.
        reason: Why this one, in a few words.
        warnings: What the user should know about it.
    """

    device: Device
    reason: str
    warnings: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Machine:
    """What there is to run models on.

    Attributes:
        ram: The memory programs share.
        gpus: NVIDIA's cards.
        accelerators: What this build of the extension can use: `cuda`, `metal` or nothing.
        simulated: A device to plan for instead of those that are here.
    """

    ram: Ram
    gpus: Gpus
    accelerators: tuple[str, ...]
    simulated: Device | None = None


def read_machine(simulated: Device | None = None) -> Machine:
    """What is here now; never fails, whatever the driver does."""
    return Machine(ram.read(), read_gpus(), _native.ACCELERATORS, simulated)


def read_gpus() -> Gpus:
    """What NVML says of NVIDIA's cards, and whether CUDA's library says so too.

    The two come with one driver, and yet one may be missing: a container can have NVML alone.
    """
    gpus = gpu.read()
    # Whoever has no card is not to wait for CUDA; and of old drivers NVML says more.
    if not gpus.found or _too_old(gpus) is not None:
        return gpus
    why = _native.cuda_obstacle()
    return gpus if why is None else replace(gpus, cuda_problem=Problem(why, _MEND_DRIVER))


def simulate(free_mb: float, compute_capability: tuple[int, int] | None) -> Device:
    """A card with so much free memory, or without compute capability a machine without a card."""
    free_bytes = int(free_mb * BYTES_PER_MIB)
    if compute_capability is None:
        return Device(CPU, "a simulated machine", free_bytes, free_bytes, is_simulated=True)
    return Device(
        FIRST_CUDA,
        "a simulated card",
        free_bytes,
        free_bytes,
        compute_capability,
        is_simulated=True,
    )


def choose(wish: str | None, machine: Machine, *, only_plans: bool) -> Choice:
    """The device for a module.

    Without a wish it is the card with the most free memory, where this build can use one, and
    else the CPU.

    Args:
        wish: `cpu`, `cuda:N`, `metal`, or None.
        machine: What there is.
        only_plans: Whether a device may be chosen that this build cannot use.

    Raises:
        UsageError: When the device that is wished for is not there or cannot be used.
    """
    if machine.simulated is not None:
        return _simulated(wish, machine.simulated)
    if wish is None:
        return _automatic(machine)
    if wish == CPU:
        return Choice(_cpu(machine), "asked for")
    found = {card.device: card for card in machine.gpus.found}
    if wish != METAL and wish not in found:
        raise _no_such_card(wish, machine.gpus)
    card = found.get(wish)
    device = _metal(machine) if card is None else _card(card)
    accelerator = METAL if card is None else CUDA
    capability = device.compute_capability
    obstacle = why_not(accelerator, machine.accelerators, machine.gpus, capability)
    if obstacle is None:
        return Choice(device, "asked for")
    if only_plans:
        return Choice(device, "asked for", (Problem(f"{wish}: {obstacle.message}", obstacle.hint),))
    raise UsageError(f"{wish} is asked for: {obstacle.message}", hint=obstacle.hint)


def why_not(
    accelerator: str,
    accelerators: tuple[str, ...],
    gpus: Gpus,
    compute_capability: tuple[int, int] | None,
) -> Problem | None:
    """Why a build with `accelerators` cannot use a device; None when it can.

    All reasons are given at once: nobody is to install a build that does not run either.
    """
    reasons: list[Problem | None] = []
    if accelerator not in accelerators:
        reasons.append(
            Problem(
                f"this build of moshi-ctl has no support for {accelerator}",
                _BUILDS[accelerator],
            )
        )
    if accelerator == CUDA:
        reasons += [driver_obstacle(gpus), capability_obstacle(compute_capability)]
    found = [reason for reason in reasons if reason is not None]
    if not found:
        return None
    hints = [reason.hint for reason in found if reason.hint]
    return Problem(", and ".join(reason.message for reason in found), " and ".join(hints))


def driver_obstacle(gpus: Gpus) -> Problem | None:
    """Why the driver does not do for builds with CUDA; None when it does."""
    return _too_old(gpus) or gpus.cuda_problem


def _too_old(gpus: Gpus) -> Problem | None:
    cuda = gpus.cuda_version
    if cuda is None or cuda >= REQUIRED_CUDA:
        return None
    return Problem(
        f"the driver {gpus.driver_version or 'of this machine'} serves CUDA {dotted(cuda)}, "
        f"a build with CUDA needs {dotted(REQUIRED_CUDA)}",
        f"update the NVIDIA driver to {REQUIRED_DRIVER} or newer",
    )


def capability_obstacle(compute_capability: tuple[int, int] | None) -> Problem | None:
    """Why a card is too old for builds with CUDA; None when it is not."""
    if compute_capability is None or compute_capability >= LEAST_COMPUTE_CAPABILITY:
        return None
    return Problem(
        f"compute capability {dotted(compute_capability)} is too old for a build with CUDA, "
        f"which needs {dotted(LEAST_COMPUTE_CAPABILITY)}",
        "use a card of the RTX 20 series or newer",
    )


def _automatic(machine: Machine) -> Choice:
    if METAL in machine.accelerators:
        return Choice(_metal(machine), "this build uses Metal")
    usable: list[Gpu] = []
    useless: dict[Problem, list[str]] = {}
    for card in machine.gpus.found:
        obstacle = why_not(CUDA, machine.accelerators, machine.gpus, card.compute_capability)
        if obstacle is None:
            usable.append(card)
        else:
            useless.setdefault(obstacle, []).append(f"{card.name} ({card.device})")
    whys = [
        Problem(f"{', '.join(cards)}: {obstacle.message}", obstacle.hint)
        for obstacle, cards in useless.items()
    ]
    if usable:
        best = max(usable, key=lambda card: card.free_bytes)
        reason = "the only card" if len(usable) == 1 else "the card with the most free memory"
        return Choice(_card(best), reason, (*machine.gpus.problems, *whys))
    texts = [text for why in whys or machine.gpus.problems for text in (why.message, why.hint)]
    why = "; ".join(text for text in texts if text) or "there is no card"
    warning = Problem(f"the models run on the CPU: {why}", _ON_THE_CPU)
    return Choice(_cpu(machine), "there is no card to use", (warning,))


def _simulated(wish: str | None, device: Device) -> Choice:
    sort = device.name.partition(":")[0]
    if wish is not None and wish.partition(":")[0] != sort:
        raise UsageError(
            f"{wish} is asked for, but a {sort} device is simulated",
            hint="add --device auto to plan for that device, whatever the configuration asks for; "
            "or leave out --compute-capability and add --device cpu to plan for a machine",
        )
    # Each card that is asked for is one like it.
    named = device if wish is None else replace(device, name=wish)
    obstacle = capability_obstacle(device.compute_capability)
    return Choice(named, "simulated", () if obstacle is None else (obstacle,))


def _no_such_card(name: str, gpus: Gpus) -> UsageError:
    names = ", ".join(f"{card.device} ({card.name})" for card in gpus.found)
    why = "; ".join(problem.message for problem in gpus.problems)
    there = f"there is only {names}" if names else why or "there is no card"
    return UsageError(
        f"{name} is asked for, but {there}",
        hint="name another device with --device, such as cpu; `moshi-ctl plan --free-mb N "
        "--compute-capability X.Y` plans for a card that is not here",
    )


def _cpu(machine: Machine) -> Device:
    title = "this container's memory" if machine.ram.is_limited else "this machine's memory"
    return Device(CPU, title, machine.ram.total_bytes, machine.ram.available_bytes)


def _metal(machine: Machine) -> Device:
    most = int(_METAL_SHARE * machine.ram.total_bytes)
    free = min(most, machine.ram.available_bytes)
    return Device(METAL, "this Mac's graphics processor", most, free)


def _card(card: Gpu) -> Device:
    return Device(
        card.device,
        card.name,
        card.total_bytes,
        card.free_bytes,
        card.compute_capability,
        card.processes,
    )
