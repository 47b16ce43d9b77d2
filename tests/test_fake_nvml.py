"""The fake library keeps to NVML's conventions."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pynvml
import pytest

from support import cli, fake_nvml
from support.fake_nvml import RTX_2070, TWO_CARDS
from support.gpus import ONE_INSTANCE


def test_every_function_of_the_fake_is_used(tmp_path: Path) -> None:
    preferred = {name for name in fake_nvml.exported() if re.search(r"Info_v2|_v3|eV$|n_v2", name)}
    fake_nvml.read(tmp_path, RTX_2070, ONE_INSTANCE)
    fake_nvml.readings(tmp_path, ONE_INSTANCE)
    fake_nvml.read(tmp_path, replace(RTX_2070, missing=frozenset(preferred)))
    used = {function for function, _ in fake_nvml.calls(tmp_path)}
    # The oldest nvidia-ml-py that will do has no such function.
    unknown = {"nvmlDeviceGetTemperatureV"} - set(dir(pynvml))
    assert set(fake_nvml.exported()) - used == {"nvmlInit_v2"} | unknown


def test_the_fake_counts_who_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in fake_nvml.machine(tmp_path, TWO_CARDS).items():
        monkeypatch.setenv(name, value)
    nvml = ctypes.CDLL(str(fake_nvml.library()))
    count = ctypes.c_uint()
    assert nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 1
    assert nvml.nvmlShutdown() == 1
    assert [nvml.nvmlInit_v2(), nvml.nvmlInitWithFlags(0), nvml.nvmlShutdown()] == [0, 0, 0]
    assert nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0
    assert count.value == 2
    assert nvml.nvmlDeviceGetCount_v2(None) == fake_nvml.INVALID_ARGUMENT
    handle = ctypes.c_void_p()
    assert nvml.nvmlDeviceGetHandleByIndex_v2(2, ctypes.byref(handle)) == 2
    assert nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)) == 0
    text = ctypes.create_string_buffer(96)
    assert nvml.nvmlDeviceGetName(handle, text, 5) == fake_nvml.INSUFFICIENT_SIZE
    assert nvml.nvmlDeviceGetName(handle, text, 96) == 0
    assert text.value == b"NVIDIA GeForce RTX 2070"
    assert nvml.nvmlDeviceGetName(ctypes.c_void_p(8), text, 96) == fake_nvml.INVALID_ARGUMENT
    processes = ctypes.c_uint(0)
    list_processes = nvml.nvmlDeviceGetGraphicsRunningProcesses_v3
    assert list_processes(handle, ctypes.byref(processes), None) == fake_nvml.INSUFFICIENT_SIZE
    assert processes.value == 1
    assert nvml.nvmlShutdown() == 0
    assert nvml.nvmlDeviceGetName(handle, text, 96) == 1


def test_the_fake_reaches_a_whole_command(tmp_path: Path) -> None:
    code = "import ctypes; print(ctypes.CDLL('libnvidia-ml.so.1').nvmlInit_v2())"
    env = cli.environment(fake_nvml.machine(tmp_path, RTX_2070))
    result = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert result.stdout == "0\n"


def test_the_fake_becomes_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in fake_nvml.machine(tmp_path, TWO_CARDS).items():
        monkeypatch.setenv(name, value)
    nvml = ctypes.CDLL(str(fake_nvml.library()))
    count = ctypes.c_uint()
    assert nvml.nvmlInitWithFlags(0) == 0
    handles = [ctypes.c_void_p(), ctypes.c_void_p()]
    for index, handle in enumerate(handles):
        assert nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0
    fake_nvml.become(tmp_path, RTX_2070)
    assert nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0
    assert count.value == 1
    text = ctypes.create_string_buffer(96)
    given = [nvml.nvmlDeviceGetName(handle, text, 96) for handle in handles]
    assert given == [0, fake_nvml.INVALID_ARGUMENT]
    assert nvml.nvmlShutdown() == 0
