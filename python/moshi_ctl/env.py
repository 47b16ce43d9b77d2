"""Every environment variable that moshi-ctl reads, and the `.env` file that may set them."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from moshi_ctl.errors import UsageError


@dataclass(frozen=True)
class Variable:
    """An environment variable: its name, and what it does in one line."""

    name: str
    effect: str


MOSHI_API_KEY = Variable(
    "MOSHI_API_KEY",
    "Keys that clients may use, separated by commas; replaces authorized_ids of the configuration. "
    "`moshi-ctl transcribe` uses the first one.",
)
BETTER_AUTH_SECRET = Variable(
    "BETTER_AUTH_SECRET",
    "Secret of JSON Web Tokens (HS256, with `exp`) that clients may use as keys beside the others; "
    "32 bytes or more.",
)
MOSHI_CTL_DEMO_DIR = Variable(
    "MOSHI_CTL_DEMO_DIR", "Folder of the model files of the `demo` configuration."
)
MOSHI_THREADS = Variable(
    "MOSHI_THREADS", "Threads of a step on the CPU, where --threads does not say it."
)
MOSHI_WARMUP = Variable(
    "MOSHI_WARMUP",
    "on or off: whether a worker warms its models up before it listens, whatever the configuration "
    "says; --no-warmup replaces it.",
)
MOSHI_INSTRUCTIONS = Variable(
    "MOSHI_INSTRUCTIONS",
    "For diagnosis: the instruction set of the CPU kernels, instead of the best one there is.",
)
MOSHI_RESERVE_MB = Variable(
    "MOSHI_RESERVE_MB",
    "Memory of each device that is left free when lanes are made to fit, in MiB; 512 unless the "
    "configuration or --reserve-mb says otherwise.",
)
MOSHI_MEMORY_ESTIMATE = Variable(
    "MOSHI_MEMORY_ESTIMATE",
    "off: rules of thumb say what a model needs, instead of its shape; on is the default.",
)
MOSHI_PER_BATCH_ITEM_MB = Variable(
    "MOSHI_PER_BATCH_ITEM_MB",
    "Memory of a lane, in MiB, instead of what is computed; 400 where the estimate is off.",
)
MOSHI_MODEL_PARAMS_BILLIONS = Variable(
    "MOSHI_MODEL_PARAMS_BILLIONS",
    "Parameters of a language model, in billions, instead of what its file says; 7.0 where the "
    "estimate is off and the file is not here yet.",
)
HF_ENDPOINT = Variable("HF_ENDPOINT", "Where hf:// files come from instead of the public hub.")
HF_TOKEN = Variable("HF_TOKEN", "Access token for hf:// files that need one.")
HF_HOME = Variable("HF_HOME", "Folder that keeps downloaded hf:// files (in its subfolder hub).")
HF_HUB_OFFLINE = Variable("HF_HUB_OFFLINE", "1: use only hf:// files that are already there.")
CUDA_VISIBLE_DEVICES = Variable(
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA cards to use, by number or UUID, separated by commas; empty: none.",
)
CUDA_DEVICE_ORDER = Variable(
    "CUDA_DEVICE_ORDER",
    "How CUDA numbers the cards; unless set, PCI_BUS_ID, which is how `nvidia-smi` numbers them.",
)
OTEL_EXPORTER_OTLP_ENDPOINT = Variable(
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "Address of the OpenTelemetry collector that gets traces, where --otlp-endpoint does not say "
    "it; the other OTEL_ variables of headers, batches, sampling and resource hold too.",
)
NO_COLOR = Variable("NO_COLOR", "Anything: no colours.")

VARIABLES = (
    MOSHI_API_KEY,
    BETTER_AUTH_SECRET,
    MOSHI_CTL_DEMO_DIR,
    MOSHI_THREADS,
    MOSHI_WARMUP,
    MOSHI_INSTRUCTIONS,
    MOSHI_RESERVE_MB,
    MOSHI_MEMORY_ESTIMATE,
    MOSHI_PER_BATCH_ITEM_MB,
    MOSHI_MODEL_PARAMS_BILLIONS,
    HF_ENDPOINT,
    HF_TOKEN,
    HF_HOME,
    HF_HUB_OFFLINE,
    CUDA_VISIBLE_DEVICES,
    CUDA_DEVICE_ORDER,
    OTEL_EXPORTER_OTLP_ENDPOINT,
    NO_COLOR,
)
"""All of them. Besides these, a configuration may name any variable as `$NAME`."""

DOT_ENV = ".env"

_Unset = TypeVar("_Unset", bool, None)

_ON = ("on", "1", "true", "yes")
_OFF = ("off", "0", "false", "no")


def load_dot_env(folder: Path) -> None:
    """Adds what `folder`'s `.env` sets to the environment; what is already set stays.

    Raises:
        UsageError: When there is such a file but it cannot be read.
    """
    from dotenv import dotenv_values

    path = folder / DOT_ENV
    try:
        if not path.is_file():
            return
        values = dotenv_values(path, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: cannot be read: {error}",
            hint="make it a readable UTF-8 text file of NAME=value lines, or remove it",
        ) from error
    for name, value in values.items():
        if value is None:
            raise UsageError(
                f"{path}: the line that names {name!r} has no value",
                hint=f"write {name}=value, or remove the line",
            )
        try:
            os.environ.setdefault(name, value)
        except ValueError:
            # Not chained: that error may show the value.
            raise UsageError(
                f"{path}: {name!r} cannot be set: name or value holds what no variable can",
                hint="write NAME=value without NUL characters, or remove the line",
            ) from None


def value_of(variable: Variable) -> str | None:
    """The value of `variable`; blank counts as not set."""
    value = os.environ.get(variable.name, "").strip()
    return value or None


def number_of(variable: Variable, least: float, most: float, unit: str) -> float | None:
    """The number that `variable` is set to, or None when it is not set.

    Raises:
        UsageError: When it is no number, or outside of what makes sense.
    """
    value = value_of(variable)
    return None if value is None else number(variable.name, value, least, most, unit)


def whole_number_of(variable: Variable, least: int, most: int, unit: str) -> int | None:
    """The whole number that `variable` is set to, or None when it is not set.

    Raises:
        UsageError: When it is no whole number, or outside of what makes sense.
    """
    value = value_of(variable)
    if value is None:
        return None
    try:
        parsed = int(value)
    except ValueError:
        raise UsageError(
            f"{variable.name}: {value!r} is not a whole number",
            hint=f"use a number of {unit} from {least} to {most}",
        ) from None
    return int(number(variable.name, str(parsed), least, most, unit))


def number(name: str, value: str, least: float, most: float, unit: str) -> float:
    """The number in `value`, which a user gave for `name`.

    Raises:
        UsageError: When it is no number, or outside of what makes sense.
    """
    try:
        parsed = float(value)
    except ValueError:
        parsed = math.nan
    if not least <= parsed <= most:
        what = "is not a number" if math.isnan(parsed) else "is out of range"
        raise UsageError(
            f"{name}: {value!r} {what}",
            hint=f"use a number of {unit} from {least:.10g} to {most:.10g}",
        )
    return parsed


def switch_of(variable: Variable, *, default: _Unset) -> bool | _Unset:
    """Whether `variable` is switched on; `default` when it is not set.

    Raises:
        UsageError: When it is set to something that is neither on nor off.
    """
    value = value_of(variable)
    if value is None:
        return default
    word = value.lower()
    if word in _ON or word in _OFF:
        return word in _ON
    raise UsageError(f"{variable.name}: {value!r} is neither on nor off", hint="use on or off")
