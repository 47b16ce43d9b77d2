"""Every environment variable that moshi-ctl reads, and the `.env` file that may set them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

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
MOSHI_CTL_DEMO_DIR = Variable(
    "MOSHI_CTL_DEMO_DIR", "Folder of the model files of the `demo` configuration."
)
MOSHI_THREADS = Variable(
    "MOSHI_THREADS", "Threads of a step on the CPU, where --threads does not say it."
)
MOSHI_INSTRUCTIONS = Variable(
    "MOSHI_INSTRUCTIONS",
    "For diagnosis: the instruction set of the CPU kernels, instead of the best one there is.",
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
NO_COLOR = Variable("NO_COLOR", "Anything: no colours.")

VARIABLES = (
    MOSHI_API_KEY,
    MOSHI_CTL_DEMO_DIR,
    MOSHI_THREADS,
    MOSHI_INSTRUCTIONS,
    HF_ENDPOINT,
    HF_TOKEN,
    HF_HOME,
    HF_HUB_OFFLINE,
    CUDA_VISIBLE_DEVICES,
    CUDA_DEVICE_ORDER,
    NO_COLOR,
)
"""All of them. Besides these, a configuration may name any variable as `$NAME`."""

DOT_ENV = ".env"


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
        os.environ.setdefault(name, value)


def value_of(variable: Variable) -> str | None:
    """The value of `variable`; blank counts as not set."""
    value = os.environ.get(variable.name, "").strip()
    return value or None
