"""Machines with NVIDIA cards that are not there: a `libnvidia-ml.so.1` that a description feeds.

`machine(tmp_path, RTX_2070)` is the environment in which a process meets such a machine. The
library is found when a process starts, so it takes a process of its own: `cli.run(..., env=...)`,
or `read` for what `moshi_ctl.gpu` makes of it.
"""

from __future__ import annotations

import atexit
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from moshi_ctl import gpu
from moshi_ctl.gpu_readings import Reading
from support import cli

SOURCE = Path(__file__).with_suffix(".c")
LIBRARY = "libnvidia-ml.so.1"
MIB = 1024 * 1024
GIB = 1024 * MIB

# NVML's codes of errors.
INVALID_ARGUMENT = 2
NOT_SUPPORTED = 3
NO_PERMISSION = 4
NOT_FOUND = 6
INSUFFICIENT_SIZE = 7
DRIVER_NOT_LOADED = 9
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
VERSION_MISMATCH = 18
NO_DATA = 21
UNKNOWN = 999

ANY_CARD = -1


@dataclass(frozen=True)
class Process:
    """A process that uses a card.

    Attributes:
        kind: "compute", "graphics" or "mps".
        name: What the driver calls it; None: it does not tell.
        used_bytes: None: the driver does not know.
    """

    pid: int
    name: str | None
    used_bytes: int | None
    kind: str = "compute"


@dataclass(frozen=True)
class Instance:
    """A MIG instance of a card. A fact that is None is one that NVML does not support."""

    gpu_instance: int
    compute_instance: int
    name: str
    uuid: str | None
    total_bytes: int
    used_bytes: int = 0
    capability: tuple[int, int] | None = None
    processes: tuple[Process, ...] = ()


@dataclass(frozen=True)
class Card:
    """A card. A fact that is None is one that NVML does not support.

    Attributes:
        reserved_bytes: What the driver keeps for itself.
        used_bytes: What processes hold.
        mig_slots: How many instances there may be; 0: it is not in MIG mode.
    """

    name: str
    uuid: str
    capability: tuple[int, int]
    total_bytes: int
    reserved_bytes: int = 0
    used_bytes: int = 0
    temperature_c: int | None = 40
    power_mw: int | None = 20_000
    utilization_percent: int | None = 0
    processes: tuple[Process, ...] = ()
    mig_slots: int = 0
    instances: tuple[Instance, ...] = ()


@dataclass(frozen=True)
class Fault:
    """A function that fails.

    Attributes:
        function: Its name in the library; `*` at the end stands for any further letters.
        code: What it returns.
        after: How many calls of a process, for each function and card, go well before.
        card: The card with which it fails; calls that are about no card count as `ANY_CARD`.
    """

    function: str
    code: int
    after: int = 0
    card: int = ANY_CARD


@dataclass(frozen=True)
class Machine:
    """A machine.

    Attributes:
        cuda: The newest CUDA its driver serves, as 1000 * major + 10 * minor.
        missing: Functions that its library does not have.
        error_string: What the library calls any error; None: something plain.
    """

    cards: tuple[Card, ...]
    driver: str = "570.86.15"
    cuda: int = 12080
    faults: tuple[Fault, ...] = ()
    missing: frozenset[str] = frozenset()
    error_string: str | None = None

    def but(self, *faults: Fault) -> Machine:
        """The same machine with further faults."""
        return replace(self, faults=self.faults + faults)


XORG = Process(1234, "/usr/lib/xorg/Xorg", 310 * MIB, kind="graphics")

RTX_2070_CARD = Card(
    "NVIDIA GeForce RTX 2070",
    "GPU-2070aaaa-1111-4222-8333-444455556666",
    (7, 5),
    total_bytes=8 * GIB,
    reserved_bytes=223 * MIB,
    used_bytes=316 * MIB,
    temperature_c=47,
    power_mw=23_450,
    utilization_percent=35,
    processes=(XORG,),
)
T4_CARD = Card(
    "Tesla T4",
    "GPU-74aaaaaa-1111-4222-8333-444455556666",
    (7, 5),
    total_bytes=16 * GIB,
    reserved_bytes=470 * MIB,
)
RTX_3060_CARD = Card(
    "NVIDIA GeForce RTX 3060",
    "GPU-3060bbbb-1111-4222-8333-444455556666",
    (8, 6),
    total_bytes=12 * GIB,
    reserved_bytes=236 * MIB,
)
H100_CARD = Card(
    "NVIDIA H100 80GB HBM3",
    "GPU-100ccccc-1111-4222-8333-444455556666",
    (9, 0),
    total_bytes=80 * GIB,
    reserved_bytes=560 * MIB,
)
MIG_INSTANCES = tuple(
    Instance(
        gpu_instance,
        0,
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        f"MIG-{gpu_instance}dddddddd-1111-5222-8333-444455556666",
        total_bytes=40 * GIB,
        used_bytes=37 * MIB,
    )
    for gpu_instance in (1, 2)
)
H100_MIG_CARD = replace(H100_CARD, mig_slots=7, instances=MIG_INSTANCES)

RTX_2070 = Machine((RTX_2070_CARD,))
T4 = Machine((T4_CARD,))
RTX_3060 = Machine((RTX_3060_CARD,))
H100 = Machine((H100_CARD,))
TWO_CARDS = Machine((RTX_2070_CARD, RTX_3060_CARD))
MIG = Machine((H100_MIG_CARD,))
NO_CARD = Machine(())

# Processes hold all that the driver does not keep for itself.
FULL = Machine(
    (
        replace(
            RTX_2070_CARD,
            used_bytes=8 * GIB - 223 * MIB,
            processes=(XORG, Process(4321, "/usr/bin/python3", 8 * GIB - 223 * MIB - 310 * MIB)),
        ),
    )
)

# It falls off the bus after it was read once.
VANISHING = RTX_2070.but(
    *(
        Fault(functions, GPU_IS_LOST, after=1)
        for functions in ("nvmlDeviceGetHandleByIndex*", "nvmlDeviceGetMemoryInfo*")
    )
)

# It answers nothing any more, whoever asks.
LOST = RTX_2070.but(Fault("nvmlDevice*", GPU_IS_LOST))

# The library is there, but the driver's kernel module is not.
NOT_LOADED = NO_CARD.but(Fault("nvmlInitWithFlags", DRIVER_NOT_LOADED))

_SINCE_510 = frozenset(
    {
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetGraphicsRunningProcesses_v3",
        "nvmlDeviceGetMPSComputeRunningProcesses_v3",
        "nvmlDeviceGetTemperatureV",
    }
)
DRIVER_470 = Machine((RTX_2070_CARD,), driver="470.256.02", cuda=11040, missing=_SINCE_510)
# From before functions had versions.
DRIVER_TOO_OLD = replace(
    DRIVER_470, driver="304.137", missing=_SINCE_510 | {"nvmlInitWithFlags", "nvmlInit_v2"}
)


@cache
def library(missing: frozenset[str] = frozenset()) -> Path:
    """Builds the library, without the functions `missing`, in a folder of its own."""
    compiler = next(filter(None, map(shutil.which, ("gcc", "cc", "clang"))), None)
    if compiler is None:
        pytest.skip("no C compiler (gcc, cc or clang) to build the fake NVML with")
    folder = Path(tempfile.mkdtemp(prefix="fake-nvml-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / LIBRARY
    # A function by another name is one that is not found.
    renamed = [f"-D{function}=absent_{function}" for function in sorted(missing)]
    options = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", *renamed]
    command = [compiler, *options, "-o", str(path), str(SOURCE)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return path


def exported() -> list[str]:
    """The functions that the library has."""
    pattern = r"^(?:int |RUNNING_PROCESSES\()(nvml\w+)"
    return re.findall(pattern, SOURCE.read_text(), flags=re.MULTILINE)


def machine(folder: Path, described: Machine) -> dict[str, str]:
    """The environment of a process on a machine; what describes it is written to `folder`."""
    folders = [str(library(described.missing).parent), os.environ.get("LD_LIBRARY_PATH", "")]
    return {
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, folders)),
        "FAKE_NVML": str(_write(folder / "fake-nvml", described)),
        "FAKE_NVML_CALLS": str(folder / "fake-nvml-calls"),
    }


def become(folder: Path, described: Machine) -> None:
    """Makes another machine of the one in `folder`, also while processes run on it.

    The library stays, and with it the functions that are missing from it.
    """
    _write(folder / "fake-nvml-next", described).replace(folder / "fake-nvml")


def calls(folder: Path) -> list[tuple[str, int]]:
    """The functions called on the machine in `folder`, each with the card or `ANY_CARD`."""
    path = folder / "fake-nvml-calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(function, int(card)) for function, card in map(str.split, lines)]


def read(folder: Path, *described: Machine, env: Mapping[str, str] | None = None) -> list[gpu.Gpus]:
    """What `moshi_ctl.gpu` reads on one machine after the other, in one process.

    They share a library, so the same functions are missing from it. A machine that follows itself
    is not started anew: its faults come nearer.
    """
    read: list[gpu.Gpus] = _in_a_process(
        folder,
        described,
        env,
        "from moshi_ctl import gpu\n"
        "for os.environ['FAKE_NVML'] in sys.argv[1:]: answers.append(gpu.read())",
    )
    return read


def readings(
    folder: Path, *described: Machine, env: Mapping[str, str] | None = None
) -> list[list[Reading]]:
    """What a reader of the first machine's cards reads on it, and on those that it becomes then."""
    read: list[list[Reading]] = _in_a_process(
        folder,
        described,
        env,
        "from moshi_ctl import gpu, gpu_readings\n"
        "read = gpu_readings.reader(gpu.read())\n"
        "for os.environ['FAKE_NVML'] in sys.argv[1:]: answers.append(read())",
    )
    return read


def _in_a_process(
    folder: Path, described: Sequence[Machine], env: Mapping[str, str] | None, code: str
) -> Any:
    """The `answers` of code that goes from machine to machine."""
    assert len({one.missing for one in described}) == 1, "of one library"
    paths = {one: folder / f"fake-nvml-{number}" for number, one in enumerate(described)}
    for one, path in paths.items():
        _write(path, one)
    whole = f"import os, pickle, sys\nanswers = []\n{code}\npickle.dump(answers, sys.stdout.buffer)"
    variables = {**machine(folder, described[0]), "FAKE_NVML": str(paths[described[0]])}
    result = subprocess.run(
        [sys.executable, "-c", whole, *(str(paths[one]) for one in described)],
        env=cli.environment({**variables, **(env or {})}),
        capture_output=True,
        timeout=cli.TIMEOUT_S,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode()
    assert not result.stderr, result.stderr.decode()
    return pickle.loads(result.stdout)  # noqa: S301 - a process of this test


def _write(path: Path, described: Machine) -> Path:
    # Encoded as file names are: they may hold any bytes, so text need not be UTF-8.
    path.write_bytes(os.fsencode(_text(described)))
    return path


def _text(described: Machine) -> str:
    lines = [f"driver {described.driver}", f"cuda {described.cuda}"]
    if described.error_string is not None:
        lines.append(f"error_string {described.error_string}")
    for card in described.cards:
        lines += ["gpu", f"uuid {card.uuid}", f"mig {card.mig_slots}"]
        lines += [f"memory {card.total_bytes} {card.reserved_bytes} {card.used_bytes}"]
        lines += _facts(card.name, card.capability, card.processes)
        if card.temperature_c is not None:
            lines.append(f"temperature {card.temperature_c}")
        if card.power_mw is not None:
            lines.append(f"power {card.power_mw}")
        if card.utilization_percent is not None:
            lines.append(f"utilization {card.utilization_percent}")
        for instance in card.instances:
            lines.append(f"instance {instance.gpu_instance} {instance.compute_instance}")
            lines.append(f"memory {instance.total_bytes} 0 {instance.used_bytes}")
            lines += _facts(instance.name, instance.capability, instance.processes)
            if instance.uuid is not None:
                lines.append(f"uuid {instance.uuid}")
    for fault in described.faults:
        lines.append(f"fault {fault.function} {fault.code} {fault.after} {fault.card}")
    return "".join(f"{line}\n" for line in lines)


def _facts(
    name: str, capability: tuple[int, int] | None, processes: Iterable[Process]
) -> list[str]:
    lines = [f"name {name}"]
    if capability is not None:
        lines.append(f"capability {capability[0]} {capability[1]}")
    for process in processes:
        used = -1 if process.used_bytes is None else process.used_bytes
        lines.append(f"process {process.kind} {process.pid} {used}")
        if process.name is not None:
            lines.append(f"command {process.pid} {process.name}")
    return lines
