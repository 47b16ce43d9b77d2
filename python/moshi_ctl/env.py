"""Every environment variable that moshi-ctl reads, and the `.env` file that may set them."""

from __future__ import annotations

import io
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from moshi_ctl.errors import UsageError

if TYPE_CHECKING:
    from dotenv.parser import Binding


@dataclass(frozen=True)
class Variable:
    """An environment variable: its name, and what it does in one line."""

    name: str
    effect: str


MOSHI_API_KEY = Variable(
    "MOSHI_API_KEY",
    "Keys that clients may use, separated by commas, each as it is or as name:key; replaces "
    "authorized_ids of the configuration. `moshi-ctl transcribe` uses the first one.",
)
BETTER_AUTH_SECRET = Variable(
    "BETTER_AUTH_SECRET",
    "Secret of JSON Web Tokens (HS256, with `exp`) that clients may use as keys beside the others; "
    "32 bytes or more.",
)
MOSHI_CTL_EMBEDDED = Variable(
    "MOSHI_CTL_EMBEDDED",
    "Folder of the model files of the `demo` configuration, instead of the one that comes with "
    "moshi-ctl.",
)
MOSHI_CTL_TINY_DIR = Variable(
    "MOSHI_CTL_TINY_DIR", "Folder of the model files of the `tiny-random` configuration."
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
    MOSHI_CTL_EMBEDDED,
    MOSHI_CTL_TINY_DIR,
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


@dataclass(frozen=True)
class _Loaded:
    """The `.env` that was loaded into this process, and the names that it set there."""

    folder: Path
    names: frozenset[str]


_loaded: _Loaded | None = None


def load_dot_env(folder: Path) -> None:
    """Adds what `folder`'s `.env` sets to the environment; what is already set stays.

    Raises:
        UsageError: When there is such a file but it cannot be read, or sets what cannot be set.
    """
    global _loaded  # noqa: PLW0603 - what it describes, the environment, is one per process too
    values = _values_in(folder, os.environ)
    names = frozenset(name for name in values if name not in os.environ)
    os.environ.update({name: values[name] for name in names})
    _loaded = _Loaded(folder, names)


def as_if_started_now() -> dict[str, str]:
    """The environment that this process would have with the `.env` that is there now.

    What came from the real environment is as it is; what came from `.env` is what that says now.
    The environment itself is left alone: other threads may be reading it.

    Raises:
        UsageError: As `load_dot_env` does.
    """
    if _loaded is None:
        return dict(os.environ)
    real = {name: value for name, value in os.environ.items() if name not in _loaded.names}
    return {**_values_in(_loaded.folder, real), **real}


def embedded_folder() -> Path:
    """Where the files of the embedded model are."""
    return Path(value_of(MOSHI_CTL_EMBEDDED) or str(files("moshi_ctl") / "embedded"))


def set_defaults() -> None:
    """Sets what configurations name and nobody has set: to be called after `.env` was read."""
    os.environ[MOSHI_CTL_EMBEDDED.name] = str(embedded_folder())


def line_number(line: Binding) -> int:
    """Which line of a `.env` it is; the parser counts empty ones before it as part of it."""
    text = line.original.string
    return line.original.line + text[: len(text) - len(text.lstrip())].count("\n")


def _values_in(folder: Path, real: Mapping[str, str]) -> dict[str, str]:
    """What a `.env` sets; `${NAME}` in it is a line before, or else what `real` says."""
    from dotenv.parser import parse_stream
    from dotenv.variables import parse_variables

    path = folder / DOT_ENV
    try:
        if not path.is_file():
            return {}
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        # What the other one says of bytes that are no text would show them.
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(
            f"{path}: cannot be read: {why}",
            hint="make it a readable UTF-8 text file of NAME=value lines, or remove it",
        ) from None
    values: dict[str, str] = {}
    for line in parse_stream(io.StringIO(text)):
        # Whatever is on a line that is not as it should be may be part of a key.
        place = f"{path}: line {line_number(line)}"
        if line.error:
            logging.getLogger("moshi_ctl").warning("%s is ignored: it is not NAME=value", place)
        if line.error or line.key is None:
            continue
        if line.value is None:
            raise UsageError(
                f"{place} names a variable without a value",
                hint="write NAME=value, or remove the line",
            )
        known = {**real, **values}
        value = "".join(part.resolve(known) for part in parse_variables(line.value))
        if not _can_be_set(line.key, value):
            raise UsageError(
                f"{place} cannot be set: name or value holds what no variable can",
                hint="write NAME=value without NUL characters, or remove the line",
            )
        values[line.key] = value
    return values


def _can_be_set(name: str, value: str) -> bool:
    try:
        return "=" not in name and b"\0" not in os.fsencode(name + value)
    except UnicodeEncodeError:
        return False


def value_of(variable: Variable, environment: Mapping[str, str] = os.environ) -> str | None:
    """The value of `variable`; blank counts as not set."""
    value = environment.get(variable.name, "").strip()
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
