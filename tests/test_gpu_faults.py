from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moshi_ctl import gpu
from moshi_ctl.gpu import GpuProcess, Gpus
from support import cli, fake_nvml
from support.fake_nvml import GPU_IS_LOST, MIB, RTX_2070, TWO_CARDS, Fault, Machine
from support.gpus import (
    FIRST_INSTANCE,
    FIRST_MIG,
    ONE_INSTANCE,
    THE_2070,
    THE_2070_BEFORE_510,
    only_problem,
    read_one,
    visible,
)

CODES = (
    fake_nvml.INVALID_ARGUMENT,
    fake_nvml.NOT_SUPPORTED,
    fake_nvml.NO_PERMISSION,
    fake_nvml.NOT_FOUND,
    fake_nvml.INSUFFICIENT_SIZE,
    fake_nvml.FUNCTION_NOT_FOUND,
    fake_nvml.GPU_IS_LOST,
    fake_nvml.NO_DATA,
    fake_nvml.UNKNOWN,
    12345,
)


def test_no_library_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    # Whatever driver the developer's machine has: the same message of the same loader.
    monkeypatch.setattr(pynvml, "CDLL", lambda _: ctypes.CDLL("libnvidia-ml-that-is-not-there.so"))
    gpus = gpu.read()
    assert gpus.driver_version is None
    assert gpus.cuda_version is None
    problem = only_problem(gpus)
    assert problem.message == "no NVIDIA driver: libnvidia-ml was not found"
    assert "--gpus all" in (problem.hint or "")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert only_problem(gpu.read()).hint is None


def test_a_library_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    library = tmp_path / fake_nvml.LIBRARY
    library.write_text("not a library")
    code = "from moshi_ctl import gpu; (problem,) = gpu.read().problems; print(problem.message)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=cli.environment({"LD_LIBRARY_PATH": str(tmp_path)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.startswith(f"libnvidia-ml cannot be loaded: {library}: "), result
    assert not result.stderr


@pytest.mark.parametrize(
    ("code", "message", "hint"),
    [
        (
            fake_nvml.DRIVER_NOT_LOADED,
            "no NVIDIA driver: its kernel module is not loaded",
            "reboot",
        ),
        (fake_nvml.VERSION_MISMATCH, "library and kernel module are of different ver", "reboot"),
        (fake_nvml.FUNCTION_NOT_FOUND, "the NVIDIA driver is too old", "newer NVIDIA driver"),
        (fake_nvml.NO_PERMISSION, "cannot be started: Insufficient Permissions", "/dev/nvidia"),
        (12, "NVML cannot be started: NVML Shared Library Not Found", "nvidia-smi"),
        (fake_nvml.UNKNOWN, "NVML cannot be started: Unknown Error", "nvidia-smi"),
        (12345, "NVML cannot be started: Fake error 12345", "nvidia-smi"),
    ],
)
def test_nvml_does_not_start(tmp_path: Path, code: int, message: str, hint: str) -> None:
    (gpus,) = fake_nvml.read(tmp_path, RTX_2070.but(Fault("nvmlInitWithFlags", code)))
    problem = only_problem(gpus)
    assert message in problem.message
    assert hint in (problem.hint or "")
    assert [function for function, _ in fake_nvml.calls(tmp_path)] == ["nvmlInitWithFlags"]


def test_a_machine_without_cards(tmp_path: Path) -> None:
    (gpus,) = fake_nvml.read(tmp_path, fake_nvml.NO_CARD, env=visible("0"))
    assert (gpus.driver_version, gpus.cuda_version) == ("570.86.15", (12, 8))
    assert only_problem(gpus).message == "no NVIDIA card: driver 570.86.15 finds none"


def each_fault(
    folder: Path, machine: Machine, functions: Iterable[str]
) -> Iterator[tuple[str, int, Gpus]]:
    """What is read when functions fail in turn, with each code."""
    faults = [(function, code) for function in functions for code in CODES]
    machines = [machine.but(Fault(function, code)) for function, code in faults]
    for (function, code), gpus in zip(faults, fake_nvml.read(folder, *machines), strict=True):
        yield function, code, gpus


# A function that fails, as the library calls it: what the card then lacks, or what it is left out
# with. A newer variant is left to its older one.
LACKS: dict[str, dict[str, Any]] = {
    "nvmlShutdown": {},
    "nvmlSystemGetProcessName": {"processes": (GpuProcess(1234, None, 310 * MIB),)},
    "nvmlDeviceGetName": {"name": "unknown"},
    "nvmlDeviceGetUUID": {"uuid": None},
    "nvmlDeviceGetMigMode": {},
    "nvmlDeviceGetMemoryInfo_v2": {"used_bytes": THE_2070_BEFORE_510.used_bytes},
    "nvmlDeviceGetTemperatureV": {},
    "nvmlDeviceGetTemperature*": {"temperature_c": None},
    "nvmlDeviceGetPowerUsage": {"power_w": None},
    "nvmlDeviceGetComputeRunningProcesses_v3": {},
    "nvmlDeviceGetComputeRunningProcesses*": {},
    "nvmlDeviceGetGraphicsRunningProcesses_v3": {},
    "nvmlDeviceGetGraphicsRunningProcesses*": {"processes": ()},
    "nvmlDeviceGetMPSComputeRunningProcesses_v3": {},
    "nvmlDeviceGetMPSComputeRunningProcesses*": {},
}
LEFT_OUT = {
    "nvmlDeviceGetCount_v2": "cards cannot be counted: {}",
    "nvmlDeviceGetMemoryInfo*": "GPU 0 (NVIDIA GeForce RTX 2070): memory cannot be read: {}",
    "nvmlDeviceGetCudaComputeCapability": "GPU 0 (NVIDIA GeForce RTX 2070): compute capability "
    "cannot be read: {}",
}
REASONS = {
    fake_nvml.GPU_IS_LOST: "GPU is lost",
    fake_nvml.NO_PERMISSION: "Insufficient Permissions",
    fake_nvml.UNKNOWN: "Unknown Error",
    fake_nvml.NO_DATA: "Fake error 21",
    12345: "Fake error 12345",
}


def test_what_is_not_essential_is_left_open(tmp_path: Path) -> None:
    for function, code, gpus in each_fault(tmp_path, RTX_2070, LACKS):
        expected = Gpus("570.86.15", (12, 8), (replace(THE_2070, **LACKS[function]),), ())
        assert gpus == expected, (function, code)


def test_what_is_essential_leaves_the_card_out(tmp_path: Path) -> None:
    for function, code, gpus in each_fault(tmp_path, RTX_2070, LEFT_OUT):
        problem = only_problem(gpus)
        assert problem.message.startswith(LEFT_OUT[function].format("")), code
        if code in REASONS:
            assert problem.message == LEFT_OUT[function].format(REASONS[code])
        assert problem.hint, (function, code)
    called = [function for function, _ in fake_nvml.calls(tmp_path)]
    assert called.count("nvmlShutdown") == len(LEFT_OUT) * len(CODES)


def test_versions_that_are_not_told(tmp_path: Path) -> None:
    functions = {
        "nvmlSystemGetDriverVersion": Gpus(None, (12, 8), (THE_2070,), ()),
        "nvmlSystemGetCudaDriverVersion_v2": Gpus("570.86.15", (12, 8), (THE_2070,), ()),
        "nvmlSystemGetCudaDriverVersion*": Gpus("570.86.15", None, (THE_2070,), ()),
    }
    machines = [RTX_2070.but(Fault(name, code)) for name in functions for code in CODES]
    expected = [gpus for gpus in functions.values() for _ in CODES]
    assert fake_nvml.read(tmp_path, *machines) == expected


def test_a_card_that_cannot_be_opened_keeps_its_number(tmp_path: Path) -> None:
    codes = [code for code in CODES if code != fake_nvml.NO_PERMISSION]
    faults = [Fault("nvmlDeviceGetHandleByIndex_v2", code, card=0) for code in codes]
    machines = [TWO_CARDS.but(fault) for fault in faults]
    for code, gpus in zip(codes, fake_nvml.read(tmp_path, *machines), strict=True):
        assert [(card.device, card.index) for card in gpus.found] == [("cuda:1", 1)], code
        problem = only_problem(replace(gpus, found=()))
        assert problem.message.startswith("GPU 0: cannot be opened: "), code
        assert REASONS.get(code, "") in problem.message


def test_a_card_of_others_is_not_counted(tmp_path: Path) -> None:
    machine = TWO_CARDS.but(Fault("nvmlDeviceGetHandleByIndex_v2", fake_nvml.NO_PERMISSION, card=0))
    found, problems = read_one(tmp_path, machine, visible("0"))
    assert [(card.device, card.index) for card in found] == [("cuda:0", 1)]
    (problem,) = problems
    assert problem.message == "GPU 0: may not be used: Insufficient Permissions"
    assert "/dev/nvidia" in (problem.hint or "")


def test_a_card_that_fails_does_not_hide_the_other(tmp_path: Path) -> None:
    found, problems = read_one(
        tmp_path, TWO_CARDS.but(Fault("nvmlDeviceGetMemoryInfo*", GPU_IS_LOST, card=0))
    )
    assert [(card.device, card.index) for card in found] == [("cuda:1", 1)]
    assert [problem.message for problem in problems] == [
        "GPU 0 (NVIDIA GeForce RTX 2070): memory cannot be read: GPU is lost"
    ]


def test_a_card_that_disappears(tmp_path: Path) -> None:
    before, after = fake_nvml.read(tmp_path, fake_nvml.VANISHING, fake_nvml.VANISHING)
    assert before.found == (THE_2070,)
    problem = only_problem(after)
    assert problem.message == "GPU 0: cannot be opened: GPU is lost"
    assert "reboot" in (problem.hint or "")


def test_a_card_that_disappears_while_it_is_read(tmp_path: Path) -> None:
    lost = [Fault("nvmlDeviceGetMemoryInfo*", GPU_IS_LOST), Fault("nvmlDeviceGetT*", GPU_IS_LOST)]
    (gpus,) = fake_nvml.read(tmp_path, RTX_2070.but(*lost, Fault("nvmlShutdown", GPU_IS_LOST)))
    assert only_problem(gpus).message.endswith(
        "(NVIDIA GeForce RTX 2070): memory cannot be read: GPU is lost"
    )


@pytest.mark.parametrize("text", ["\udcff\udcfe", "two\rlines", " "])
def test_an_error_without_readable_text_is_told_by_its_code(tmp_path: Path, text: str) -> None:
    fault = Fault("nvmlDeviceGetMemoryInfo*", fake_nvml.NO_DATA)
    (gpus,) = fake_nvml.read(tmp_path, replace(RTX_2070.but(fault), error_string=text))
    assert only_problem(gpus).message.endswith("memory cannot be read: NVML error 21")


INSTANCE_LACKS: dict[str, dict[str, Any]] = {
    "nvmlDeviceGetName": {"name": "unknown"},
    "nvmlDeviceGetUUID": {"uuid": None},
    "nvmlDeviceGetGpuInstanceId": {},
    "nvmlDeviceGetComputeInstanceId": {},
    "nvmlDeviceGetComputeRunningProcesses*": {},
}
INSTANCE_LEFT_OUT = {
    "nvmlDeviceGetMaxMigDeviceCount": "GPU 0 (NVIDIA H100 80GB HBM3): its MIG instances cannot ",
    "nvmlDeviceGetMigDeviceHandleByIndex": "GPU 0 (NVIDIA H100 80GB HBM3): it",
    "nvmlDeviceGetMemoryInfo*": f"{FIRST_MIG.uuid} of GPU 0: memory cannot be read: ",
    "nvmlDeviceGetCudaComputeCapability": f"{FIRST_MIG.uuid} of GPU 0: compute capability ",
}


def test_what_is_not_essential_of_an_instance(tmp_path: Path) -> None:
    for function, code, gpus in each_fault(tmp_path, ONE_INSTANCE, INSTANCE_LACKS):
        assert gpus.found == (replace(FIRST_INSTANCE, **INSTANCE_LACKS[function]),), (
            function,
            code,
        )
        assert gpus.problems == (), (function, code)


def test_what_is_essential_of_an_instance(tmp_path: Path) -> None:
    for function, code, gpus in each_fault(tmp_path, ONE_INSTANCE, INSTANCE_LEFT_OUT):
        problem = only_problem(gpus)
        assert problem.message.startswith(INSTANCE_LEFT_OUT[function]), (function, code)
        assert problem.hint, (function, code)


# Drivers that lack functions.


def test_an_older_driver_is_read_by_older_functions(tmp_path: Path) -> None:
    (gpus,) = fake_nvml.read(tmp_path, fake_nvml.DRIVER_470)
    assert gpus == Gpus("470.256.02", (11, 4), (THE_2070_BEFORE_510,), ())


def test_a_driver_that_is_too_old(tmp_path: Path) -> None:
    (gpus,) = fake_nvml.read(tmp_path, fake_nvml.DRIVER_TOO_OLD)
    problem = only_problem(gpus)
    assert "too old" in problem.message
    assert "nvmlInitWithFlags" in problem.message
    assert "newer" in (problem.hint or "")
    assert fake_nvml.calls(tmp_path) == []


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        (r"nvmlInitWithFlags", "the NVIDIA driver is too old"),
        (r"nvmlDeviceGetCount", "cards cannot be counted: Function Not Found"),
        (r"nvmlDeviceGetHandle", "GPU 0: cannot be opened: Function Not Found"),
        (r"nvmlDeviceGetMemoryInfo", "memory cannot be read: Function Not Found"),
        (r"ComputeCapability", "compute capability cannot be read: Function Not Found"),
    ],
)
def test_an_essential_function_is_missing(tmp_path: Path, functions: str, message: str) -> None:
    missing = {name for name in fake_nvml.exported() if re.search(functions, name)}
    assert missing
    (gpus,) = fake_nvml.read(tmp_path, replace(RTX_2070, missing=frozenset(missing)))
    assert message in only_problem(gpus).message


def test_all_other_functions_are_missing(tmp_path: Path) -> None:
    essential = r"nvmlInitWithFlags|GetCount|GetHandle|GetMemoryInfo$|ComputeCapability"
    missing = {name for name in fake_nvml.exported() if not re.search(essential, name)}
    assert "nvmlShutdown" in missing
    (gpus,) = fake_nvml.read(tmp_path, replace(RTX_2070, missing=frozenset(missing)))
    bare = replace(
        THE_2070_BEFORE_510,
        name="unknown",
        uuid=None,
        processes=(),
        temperature_c=None,
        power_w=None,
    )
    assert gpus == Gpus(None, None, (bare,), ())


def test_a_missing_variant_does_not_hide_why_the_other_failed(tmp_path: Path) -> None:
    fault = Fault("nvmlDeviceGetMemoryInfo", GPU_IS_LOST)
    (gpus,) = fake_nvml.read(tmp_path, fake_nvml.DRIVER_470.but(fault))
    assert only_problem(gpus).message.endswith("memory cannot be read: GPU is lost")
    missing = replace(
        RTX_2070.but(Fault("nvmlDeviceGetMemoryInfo_v2", GPU_IS_LOST)),
        missing=frozenset({"nvmlDeviceGetMemoryInfo"}),
    )
    (gpus,) = fake_nvml.read(tmp_path, missing)
    assert only_problem(gpus).message.endswith("memory cannot be read: GPU is lost")
