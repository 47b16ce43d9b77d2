"""What happens between `moshi-ctl worker` and a listening server."""

from __future__ import annotations

import contextlib
import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from moshi_ctl import (
    _native,
    config,
    devices,
    env,
    gpu,
    gpu_readings,
    hub,
    interrupts,
    logs,
    open_files,
    plan,
    plan_view,
    tls,
)
from moshi_ctl.config import Config
from moshi_ctl.env import MOSHI_WARMUP
from moshi_ctl.errors import UsageError
from moshi_ctl.key_reader import KeyReader
from moshi_ctl.logs import LogOptions
from moshi_ctl.plan import Wishes
from moshi_ctl.report import console


@dataclass(frozen=True)
class WorkerOptions:
    """How to serve a configuration; the options of `moshi-ctl worker`.

    Attributes:
        addr: IP address to listen on.
        port: Port to listen on; 0 for any free one.
        log: How to log.
        threads: Threads of a step on the CPU; one per physical core if None.
        warmup: Whether models are warmed up before the port opens; as the configuration says if
            None.
        wishes: What replaces what the configuration says of devices and precisions.
        tls_cert: PEM file of the certificate that clients are shown, with those that signed it;
            without one they are served in plain text.
        tls_key: PEM file of its private key.
    """

    addr: str
    port: int
    log: LogOptions = field(default_factory=LogOptions)
    threads: int | None = None
    warmup: bool | None = None
    wishes: Wishes = field(default_factory=Wishes)
    tls_cert: Path | None = None
    tls_key: Path | None = None


def run(config_path: Path, options: WorkerOptions) -> None:
    """Serves a configuration until SIGINT or SIGTERM.

    Everything that can be known to be wrong is reported before anything is downloaded or loaded.

    Raises:
        UsageError: When the address, the keys or the files for TLS do not allow it.
        ConfigError: When the configuration cannot be used.
        SizingError: When a model does not fit.
        ModelFileError: When a file cannot be downloaded, or is another model's.
        WorkerError: When the server cannot start or fails.
    """
    addr = ip_address(options.addr)
    tls.check_files(options.tls_cert, options.tls_key)
    configuration = config.read(config_path, require_files=True, warmup=options.warmup)
    with logs.running(configuration, options.log), interrupts.hang_up_ends_nothing():
        _serve(configuration, addr, options)


def _serve(configuration: Config, addr: str, options: WorkerOptions) -> None:
    read_keys = KeyReader(configuration, addr, encrypted=options.tls_cert is not None)
    gpu.number_cards_as_nvml_does()
    machine = devices.read_machine()
    decided = plan.make(configuration, machine, options.wishes, only_plans=False)
    if options.log.console_is_for_people:
        # A console that is closed or full is no reason not to serve.
        with contextlib.suppress(OSError):
            plan_view.show(decided, console())
    for warning in decided.warnings:
        logs.warn(warning.message, hint=warning.hint)
    for module in decided.modules:
        logs.note(plan_view.in_words(module))
    decided.refuse_what_does_not_fit()
    files = hub.fetch_all(
        (file.value for file in configuration.files),
        show_progress=options.log.console_is_for_people,
    )
    open_files.allow_as_many_as_possible()
    with interrupts.ending_the_process():
        _native.serve(
            configuration.path,
            addr=addr,
            port=options.port,
            threads=options.threads,
            decisions=decided.decisions(),
            files={value: str(path) for value, path in files.items()},
            read_keys=read_keys,
            tls_cert=options.tls_cert,
            tls_key=options.tls_key,
            warmup=options.warmup,
            gpu_readings=gpu_readings.reader(machine.gpus),
        )


def warmup_from_environment() -> bool | None:
    """What `MOSHI_WARMUP` says, or None when it is not set.

    Raises:
        UsageError: When it is neither on nor off.
    """
    return env.switch_of(MOSHI_WARMUP, default=None)


def ip_address(addr: str) -> str:
    """The IP address that `--addr` means.

    Raises:
        UsageError: When it means none.
    """
    if addr == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(addr))
    except ValueError as error:
        raise UsageError(
            f"--addr: {addr!r} is not an IP address",
            hint="use 127.0.0.1 for this machine only, 0.0.0.0 for everybody",
        ) from error
