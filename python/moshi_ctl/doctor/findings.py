"""What a check found, and what the checks look at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path

from moshi_ctl import _native, devices, hub, plan, ram
from moshi_ctl.config import Config
from moshi_ctl.devices import Machine
from moshi_ctl.errors import UsageError
from moshi_ctl.gpu import Gpus
from moshi_ctl.hub import HubFile
from moshi_ctl.plan import Wishes
from moshi_ctl.ram import Ram
from moshi_ctl.units import BYTES_PER_MIB


class Status(str, Enum):
    """How something is."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Finding:
    """A line of the report. It never holds a key, a token or a secret.

    Attributes:
        name: Of what was checked.
        status: How it is.
        message: What was found.
        remedy: What to do about it, unless it is as it should be.
    """

    name: str
    status: Status
    message: str
    remedy: str | None = None


@dataclass
class Situation:
    """What the checks look at; facts of the machine are read once, when first asked for.

    Attributes:
        addr: The address that a server is to listen on.
        port: The port.
        config_name: What `--config` says, if it is there.
        folder: The working directory.
        tls_cert: What `--tls-cert` says, if it is there.
        tls_key: What `--tls-key` says, if it is there.
        refuses_dot_env: Whether what is in its `.env` could not be set.
        configuration: The configuration, once the check that reads it could.
        hub_answers: Whether the hub did, once the check that asks it is through.
        download_bytes: What is to be downloaded, once that is known.
    """

    addr: str
    port: int
    config_name: str | None
    folder: Path
    tls_cert: Path | None = None
    tls_key: Path | None = None
    refuses_dot_env: bool = False
    configuration: Config | None = None
    hub_answers: bool = False
    download_bytes: int | None = None

    @cached_property
    def gpus(self) -> Gpus:
        """NVIDIA's cards."""
        return devices.read_gpus()

    @cached_property
    def ram(self) -> Ram:
        """The memory that programs share."""
        return ram.read()

    @property
    def accelerators(self) -> tuple[str, ...]:
        """What this build can use besides the CPU."""
        return _native.ACCELERATORS

    @property
    def machine(self) -> Machine:
        """What there is to run models on."""
        return Machine(self.ram, self.gpus, self.accelerators)

    @property
    def reserve_bytes(self) -> int:
        """What is to be left free of each device."""
        try:
            mib = plan.reserve_mib(self.configuration, Wishes())
        except UsageError:  # which another check reports
            mib = plan.DEFAULT_RESERVE_MIB
        return int(mib * BYTES_PER_MIB)

    @cached_property
    def missing(self) -> tuple[HubFile, ...]:
        """The configuration's files on the hub that were not downloaded yet."""
        values = self.configuration.files if self.configuration else ()
        files = dict.fromkeys(hub.parse(file.value) for file in values)
        return tuple(file for file in files if file is not None and hub.cached(file) is None)


def ok(name: str, message: str) -> Finding:
    """Something that is as it should be."""
    return Finding(name, Status.OK, message)


def warning(name: str, message: str, remedy: str | None) -> Finding:
    """Something that a server can do with, but not as well."""
    return Finding(name, Status.WARNING, message, remedy)


def failure(name: str, message: str, remedy: str | None) -> Finding:
    """Something that keeps a server from starting or working."""
    return Finding(name, Status.FAILURE, message, remedy)
