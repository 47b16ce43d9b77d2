"""What `moshi_ctl.gpu` is to read on the machines of `fake_nvml`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from moshi_ctl.gpu import Gpu, GpuProcess, Gpus, Problem
from support import fake_nvml
from support.fake_nvml import GIB, H100_MIG_CARD, MIB, MIG_INSTANCES, RTX_2070_CARD, Machine

FIRST_MIG, SECOND_MIG = MIG_INSTANCES
ONE_INSTANCE = Machine((replace(H100_MIG_CARD, instances=(FIRST_MIG,)),))

THE_2070 = Gpu(
    device="cuda:0",
    index=0,
    name="NVIDIA GeForce RTX 2070",
    uuid=RTX_2070_CARD.uuid,
    compute_capability=(7, 5),
    total_bytes=8 * GIB,
    free_bytes=8 * GIB - 539 * MIB,
    used_bytes=316 * MIB,
    processes=(GpuProcess(1234, "/usr/lib/xorg/Xorg", 310 * MIB),),
    temperature_c=47,
    power_w=23.45,
    is_mig=False,
)
THE_2070_BEFORE_510 = replace(THE_2070, used_bytes=539 * MIB)

FIRST_INSTANCE = Gpu(
    device="cuda:0",
    index=0,
    name="NVIDIA H100 80GB HBM3 MIG 3g.40gb",
    uuid=FIRST_MIG.uuid,
    compute_capability=(9, 0),
    total_bytes=40 * GIB,
    free_bytes=40 * GIB - 37 * MIB,
    used_bytes=37 * MIB,
    processes=(),
    temperature_c=None,
    power_w=None,
    is_mig=True,
)

# What is read of them while a worker serves.
THE_2070_READ = {
    "device": "cuda:0",
    "name": "NVIDIA GeForce RTX 2070",
    "uuid": RTX_2070_CARD.uuid,
    "memory_used_bytes": 539 * MIB,
    "memory_total_bytes": 8 * GIB,
    "utilization_ratio": 0.35,
    "power_watts": 23.45,
    "temperature_celsius": 47,
}
THE_INSTANCE_READ = {
    "device": "cuda:0",
    "name": "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
    "uuid": FIRST_MIG.uuid,
    "memory_used_bytes": 37 * MIB,
    "memory_total_bytes": 40 * GIB,
    "utilization_ratio": None,
    "power_watts": None,
    "temperature_celsius": None,
}


def visible(value: str) -> dict[str, str]:
    return {"CUDA_VISIBLE_DEVICES": value}


def read_one(
    folder: Path, machine: Machine, env: Mapping[str, str] | None = None
) -> tuple[tuple[Gpu, ...], tuple[Problem, ...]]:
    """What is found on a machine, and the problems."""
    (gpus,) = fake_nvml.read(folder, machine, env=env)
    return gpus.found, gpus.problems


def only_problem(gpus: Gpus) -> Problem:
    """The one problem, which has to be what a person can read."""
    assert gpus.found == ()
    (problem,) = gpus.problems
    for text in (problem.message, problem.hint or "a hint may be missing"):
        assert text
        assert text.isprintable()
        assert not re.search(r"Traceback|NVMLError|pynvml|Errno|None|object at", text), text
    return problem
