"""`moshi-ctl` in this process, where one of its own would only be slower: what it would decide."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moshi_ctl import cli, devices, hub
from moshi_ctl.devices import Machine
from moshi_ctl.gpu import Gpus
from moshi_ctl.ram import Ram
from support import emulated_cuda, fake_nvml
from support.cli import run

MIB = 2**20

# What CUDA takes of a card for itself, by the engine's assumption.
DRIVER_MIB = 300
GIB = 2**30

# Two-thirds of it is free, and there is no card.
PLAIN_MACHINE = Machine(Ram(24 * GIB, 16 * GIB), Gpus(None, None, (), ()), ())

CARD = ("--free-mb", "7500", "--compute-capability", "7.5")


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def plan(self) -> dict[str, Any]:
        plan: dict[str, Any] = json.loads(self.out)
        return plan

    @property
    def module(self) -> dict[str, Any]:
        """What was decided for the only module."""
        (module,) = self.plan["modules"].values()
        return dict(module)

    @property
    def lanes(self) -> int:
        return int(self.module["lanes"])

    @property
    def error(self) -> str:
        """The line of the error, which has to be the only one."""
        (error,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return error

    @property
    def hint(self) -> str:
        """The line after it."""
        lines = self.err.splitlines()
        hint = lines[lines.index(self.error) + 1]
        assert hint.startswith("hint: ")
        return hint

    @property
    def plain_err(self) -> str:
        """Standard error without the boxes that some errors come in, whose lines break anywhere."""
        return " ".join(" ".join(line.strip("│ ") for line in self.err.splitlines()).split())


class Command:
    """`moshi-ctl` in this process, on a machine of the test's choice."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        # What was downloaded before is no part of a test.
        monkeypatch.setattr(hub, "cached", lambda _: None)
        self.on(PLAIN_MACHINE)

    def on(self, machine: Machine) -> None:
        """Runs what comes after this on `machine`."""

        def read_machine(simulated: devices.Device | None = None) -> Machine:
            return Machine(machine.ram, machine.gpus, machine.accelerators, simulated)

        self._monkeypatch.setattr(devices, "read_machine", read_machine)

    def set(self, **variables: str) -> None:
        """Sets environment variables."""
        for name, value in variables.items():
            self._monkeypatch.setenv(name, value)

    def __call__(self, *arguments: str | Path) -> Said:
        self._capsys.readouterr()
        self._monkeypatch.setattr(sys, "argv", ["moshi-ctl", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = self._capsys.readouterr()
        assert "Traceback" not in captured.err
        return Said(int(ended.value.code or 0), captured.out, captured.err)

    def plan(self, config: str | Path, *arguments: str | Path) -> Said:
        """`moshi-ctl plan --json`."""
        return self("plan", "--config", config, "--json", *arguments)


def on_cards(
    folder: Path,
    machine: fake_nvml.Machine,
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
) -> Said:
    """A process of `moshi-ctl plan` on a machine with NVIDIA cards."""
    variables = {**emulated_cuda.machine(folder, machine), **(env or {})}
    result = run("plan", *arguments, cwd=folder, env=variables)
    assert "Traceback" not in result.stderr, result.stderr
    return Said(result.returncode, result.stdout, result.stderr)
