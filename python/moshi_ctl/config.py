"""The few facts of a configuration that Python acts on; its schema is the extension's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moshi_ctl import _native


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
class Config:
    """A configuration that passed the extension's checks.

    Attributes:
        path: Its file.
        key_count: How many keys it lists.
        modules: The path each module is served at, by the module's name.
        files: The files of all modules.
    """

    path: Path
    key_count: int
    modules: dict[str, str]
    files: tuple[ModelFile, ...]


def read(path: Path, *, require_files: bool = False) -> Config:
    """Reads and checks a configuration; its local files need not exist unless required.

    Raises:
        ConfigError: Says what is wrong, where, and what to do about it.
    """
    summary = _native.read_config(path, require_files=require_files)
    return Config(
        path=path,
        key_count=summary["authorized_ids"],
        modules={name: module["path"] for name, module in summary["modules"].items()},
        files=tuple(ModelFile(**file) for file in summary["files"]),
    )
