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
    keys,
    logs,
    plan,
    plan_view,
)
from moshi_ctl.config import Config
from moshi_ctl.env import MOSHI_API_KEY, MOSHI_WARMUP
from moshi_ctl.errors import UsageError
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
    """

    addr: str
    port: int
    log: LogOptions = field(default_factory=LogOptions)
    threads: int | None = None
    warmup: bool | None = None
    wishes: Wishes = field(default_factory=Wishes)


def run(config_path: Path, options: WorkerOptions) -> None:
    """Serves a configuration until SIGINT or SIGTERM.

    Everything that can be known to be wrong is reported before anything is downloaded or loaded.

    Raises:
        UsageError: When the address or the keys do not allow it.
        ConfigError: When the configuration cannot be used.
        SizingError: When a model does not fit.
        ModelFileError: When a file cannot be downloaded, or is another model's.
        WorkerError: When the server cannot start or fails.
    """
    addr = ip_address(options.addr)
    configuration = config.read(config_path, require_files=True, warmup=options.warmup)
    with logs.running(configuration, options.log):
        _serve(configuration, addr, options)


def _serve(configuration: Config, addr: str, options: WorkerOptions) -> None:
    api_keys = keys.keys_from_environment()
    jwt_secret = keys.jwt_secret_from_environment()
    if jwt_secret is not None and keys.is_short_for_tokens(jwt_secret):
        logs.warn(keys.TOO_SHORT, hint=keys.TOO_SHORT_HINT)
    if api_keys is None and jwt_secret is None and configuration.key_count == 0:
        keys.refuse_open_server(addr)
        logs.warn(
            f"no API key is set: every program on this machine can use the server at {addr}",
            hint=f"set {MOSHI_API_KEY.name} to change that",
        )
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
    with interrupts.ending_the_process():
        _native.serve(
            configuration.path,
            addr=addr,
            port=options.port,
            threads=options.threads,
            decisions=decided.decisions(),
            files={value: str(path) for value, path in files.items()},
            api_keys=api_keys,
            jwt_secret=jwt_secret,
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
