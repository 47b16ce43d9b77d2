"""The few facts of a configuration that Python acts on; its schema is the extension's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from moshi_ctl import _native

# What a configuration says where it leaves the number of lanes to the controller.
_AUTO: Final = "auto"


@dataclass(frozen=True)
class ModelFile:
    """A file that a module needs.

    Attributes:
        module: The module's name.
        key: The key in the configuration that names the file.
        value: A local path or an `hf://` reference, with `$NAME` already replaced.
    """

    module: str
    key: str
    value: str


@dataclass(frozen=True)
class Module:
    """A model to serve.

    Attributes:
        path: Where it is served.
        lanes: How many streams it is to serve at the same time; None for as many as fit.
        device: Where it is to run; None leaves that to the controller.
    """

    path: str
    lanes: int | None
    device: str | None


@dataclass(frozen=True)
class Sizing:
    """How lanes are made to fit.

    Attributes:
        reserve_mb: MiB of each device's memory that are left free; None for the default.
        estimate: Whether memory is computed from the shapes of models.
        real_time: Whether lanes that the device cannot keep in real time are given up.
    """

    reserve_mb: int | None
    estimate: bool
    real_time: bool


@dataclass(frozen=True)
class Config:
    """A configuration that passed the extension's checks.

    Attributes:
        path: Its file.
        key_count: How many keys it lists.
        log_dir: The folder of the server's log files.
        instance_name: What their names end with.
        modules: What it serves, by the module's name.
        files: The files of all modules.
        warms_up: Whether models step before the port opens.
        sizing: How lanes are made to fit.
    """

    path: Path
    key_count: int
    log_dir: Path
    instance_name: str
    modules: dict[str, Module]
    files: tuple[ModelFile, ...]
    warms_up: bool
    sizing: Sizing


def read(path: Path, *, require_files: bool = False, warmup: bool | None = None) -> Config:
    """Reads and checks a configuration; its local files need not exist unless required.

    Args:
        path: Its file.
        require_files: Whether a local file that does not exist is an error.
        warmup: Replaces what it says of the warm-up, unless None.

    Raises:
        ConfigError: Says what is wrong, where, and what to do about it.
    """
    summary = _native.read_config(path, require_files=require_files)
    return Config(
        path=path,
        key_count=summary["authorized_ids"],
        log_dir=Path(summary["log_dir"]),
        instance_name=summary["instance_name"],
        modules={name: _module(module) for name, module in summary["modules"].items()},
        files=tuple(ModelFile(**file) for file in summary["files"]),
        warms_up=summary["warmup"]["enabled"] if warmup is None else warmup,
        sizing=Sizing(**summary["sizing"]),
    )


def _module(summary: dict[str, Any]) -> Module:
    lanes = summary["batch_size"]
    return Module(
        path=summary["path"],
        lanes=None if lanes == _AUTO else lanes,
        device=summary["device"],
    )
