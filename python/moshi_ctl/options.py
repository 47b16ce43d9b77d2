"""The options that several commands share, and what they say together."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Final

import typer

from moshi_ctl import _native, devices, env, logs
from moshi_ctl.errors import UsageError
from moshi_ctl.monitoring import readiness, watching
from moshi_ctl.plan import AUTO, DEFAULT_RESERVE_MIB, MOST_RESERVE_MIB, Wishes

_COMPUTE_CAPABILITY = re.compile(r"([5-9]|[1-9][0-9])\.([0-9])")


class ComputePrecision(str, Enum):
    """How a model's matrices, or its keys and values, are held in memory."""

    AUTO = "auto"
    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8 = "q8"


ConfigOption = Annotated[
    str,
    typer.Option(
        "--config", metavar="CONFIG", help="A TOML file, or the name of a shipped configuration."
    ),
]


AddrOption = Annotated[
    str,
    typer.Option("--addr", "-a", help="IP address to listen on; 127.0.0.1: this machine."),
]
DEFAULT_ADDR: Final = "0.0.0.0"  # noqa: S104 - as Kyutai's server; without a key it is refused

PortOption = Annotated[
    int, typer.Option("--port", "-p", min=0, max=65_535, help="Port; 0: any free one.")
]
DEFAULT_PORT: Final = 8080

ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        max=_native.MAX_THREADS,
        envvar=env.MOSHI_THREADS.name,
        help="Threads of a step on the CPU; one per physical core without it.",
        show_default=False,
    ),
]


def _device_name(value: str | None) -> str | None:
    if value in (None, AUTO):
        return value
    try:
        return _native.device_name(value)
    except UsageError as error:
        raise typer.BadParameter(
            f"{value!r} is not a device: use auto, cpu, cuda, cuda:N or metal"
        ) from error


DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="[auto|cpu|cuda:N|metal]",
        callback=_device_name,
        help="Where models run, whatever the configuration says; auto: a card that this build "
        "can use, else the CPU.",
        show_default=False,
    ),
]

CpuOption = Annotated[bool, typer.Option("--cpu", help="The same as --device cpu.")]

PrecisionOption = Annotated[
    ComputePrecision | None,
    typer.Option(
        "--precision",
        case_sensitive=False,
        help="Of the language models, whatever the configuration says; auto: the device's.",
        show_default=False,
    ),
]

KvPrecisionOption = Annotated[
    ComputePrecision | None,
    typer.Option(
        "--kv-precision",
        case_sensitive=False,
        help="Of their keys and values; auto: what goes with the precision.",
        show_default=False,
    ),
]


def _number(option: str, least: float, most: float, unit: str) -> Callable[[str], float]:
    """Reads the number of an option as that of a variable: "nan" is none."""

    def parse(value: str) -> float:
        return env.number(option, value, least, most, unit)

    return parse


def _mib(option: str, least: float) -> Callable[[str], float]:
    return _number(option, least, MOST_RESERVE_MIB, "MiB")


ReserveOption = Annotated[
    float | None,
    typer.Option(
        "--reserve-mb",
        metavar="MIB",
        parser=_mib("--reserve-mb", 0),
        help=f"MiB of each device that are left free; {DEFAULT_RESERVE_MIB:.0f} unless the "
        f"configuration or {env.MOSHI_RESERVE_MB.name} says otherwise.",
        show_default=False,
    ),
]

FreeOption = Annotated[
    float | None,
    typer.Option(
        "--free-mb",
        metavar="MIB",
        parser=_mib("--free-mb", 1),
        help="Plan for a card with so many MiB free instead of what is here; with --device cpu, "
        "for a machine.",
        show_default=False,
    ),
]

CapabilityOption = Annotated[
    str | None,
    typer.Option(
        "--compute-capability",
        metavar="X.Y",
        help="Of the card that --free-mb stands for: 7.5 is Turing, 8.6 Ampere, 8.9 Ada, 9.0 "
        "Hopper.",
        show_default=False,
    ),
]


class LogLevel(str, Enum):
    """How much the server logs."""

    ERROR = "error"
    WARN = "warn"
    INFO = "info"
    DEBUG = "debug"
    TRACE = "trace"


class LogFormat(str, Enum):
    """How lines of the log look."""

    TEXT = logs.TEXT
    JSON = logs.JSON


TlsCertOption = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert",
        metavar="PEM",
        help="Certificate, with those that signed it: clients then use https:// and wss:// only. "
        "Looked at again every few seconds.",
        show_default=False,
    ),
]

TlsKeyOption = Annotated[
    Path | None,
    typer.Option(
        "--tls-key", metavar="PEM", help="The certificate's private key.", show_default=False
    ),
]

CaOption = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        metavar="PEM",
        help="Trust these certificates, such as one that signed itself, instead of the system's.",
        show_default=False,
    ),
]

LogOption = Annotated[
    LogLevel, typer.Option("--log", "-l", case_sensitive=False, help="How much to log.")
]

LogFormatOption = Annotated[
    LogFormat,
    typer.Option(
        "--log-format",
        case_sensitive=False,
        help="Text, or one JSON object per line, on the console and in files.",
    ),
]

LogMaxSizeOption = Annotated[
    int,
    typer.Option(
        "--log-max-size-mb",
        metavar="MIB",
        min=1,
        max=1024 * 1024,
        help="Size of a log file at which the next is begun; one is begun each day too.",
    ),
]

LogMaxFilesOption = Annotated[
    int,
    typer.Option(
        "--log-max-files",
        min=0,
        max=logs.MOST_FILES,
        help="Log files that are kept beside the one that is written.",
    ),
]

OtlpEndpointOption = Annotated[
    str | None,
    typer.Option(
        "--otlp-endpoint",
        metavar="URL",
        envvar=env.OTEL_EXPORTER_OTLP_ENDPOINT.name,
        help="OpenTelemetry collector that gets traces (OTLP over HTTP), such as "
        "http://127.0.0.1:4318; none without it.",
        show_default=False,
    ),
]

SilentOption = Annotated[bool, typer.Option("--silent", help="Log to files only.")]

ServerArgument = Annotated[
    str,
    typer.Argument(
        metavar="URL", help="The server: its address, host:port, or that of any of its routes."
    ),
]

EveryOption = Annotated[
    float | None,
    typer.Option(
        "--every",
        metavar="SECONDS",
        parser=_number("--every", watching.LEAST_EVERY_S, watching.MOST_EVERY_S, "seconds"),
        help=f"With --watch: how often; {watching.DEFAULT_EVERY_S:g} without it.",
        show_default=False,
    ),
]

TimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        parser=_number("--timeout", 0, readiness.MOST_TIMEOUT_S, "seconds"),
        help=f"With --wait: for how long; {readiness.DEFAULT_TIMEOUT_S:g} without it.",
        show_default=False,
    ),
]


def device_of(device: str | None, *, cpu: bool) -> str | None:
    """What --device and --cpu say together; None leaves the choice to others."""
    if cpu and device not in (None, devices.CPU):
        raise UsageError(f"--cpu contradicts --device {device}", hint="leave out one of them")
    return devices.CPU if cpu else device


def wishes(
    device: str | None,
    precision: ComputePrecision | None,
    kv_precision: ComputePrecision | None,
    reserve_mb: float | None,
    *,
    cpu: bool,
) -> Wishes:
    """What the options say of the decision."""
    return Wishes(
        device=device_of(device, cpu=cpu),
        precision=precision.value if precision else None,
        kv_precision=kv_precision.value if kv_precision else None,
        reserve_mib=reserve_mb,
    )


def simulated(
    free_mb: float | None, compute_capability: str | None, device: str | None
) -> devices.Device | None:
    """The device that --free-mb and --compute-capability stand for."""
    if free_mb is None and compute_capability is None:
        return None
    if free_mb is None:
        raise UsageError(
            "--compute-capability stands for a card, but how much memory it has is not said",
            hint="add --free-mb, such as 7500",
        )
    if compute_capability is None:
        if device != devices.CPU:
            raise UsageError(
                "--free-mb stands for a card, but what sort of card is not said",
                hint="add --compute-capability, such as 7.5; or --device cpu to plan for a "
                "machine with so much memory and no card",
            )
        return devices.simulate(free_mb, None)
    match = _COMPUTE_CAPABILITY.fullmatch(compute_capability)
    if match is None:
        raise UsageError(
            f"--compute-capability: {compute_capability!r} is not a compute capability",
            hint="write major and minor version with a dot between, from 5.0 to 99.9, such as 7.5",
        )
    return devices.simulate(free_mb, (int(match[1]), int(match[2])))
