"""Every error a user can meet, with what to do about it and the exit code it ends with.

The extension raises `ConfigError` and `WorkerError` too; it builds them by name, so they are
defined here only.
"""

from __future__ import annotations

from typing import ClassVar


class MoshiCtlError(Exception):
    """What happened, with the value that was wrong, and what to do next.

    Attributes:
        message: What happened.
        hint: What to do next, where that is known.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(MoshiCtlError):
    """The command line or the environment asks for something that cannot be done."""

    exit_code = 2


class ConfigError(MoshiCtlError):
    """A configuration that cannot be used.

    Attributes:
        file: The configuration's path.
        line: The line in it, counted from 1, where that is known.
        key: The dotted path of the offending key, where there is one.
    """

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        file: str | None = None,
        line: int | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.file = file
        self.line = line
        self.key = key

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file and self.line else self.file
        where = ": ".join(part for part in (place, self.key) if part)
        return f"{where}: {self.message}" if where else self.message


class WorkerError(MoshiCtlError):
    """The server could not start, or ended on its own."""


class SizingError(MoshiCtlError):
    """A model that does not fit, whatever its number of lanes."""


class ModelFileError(MoshiCtlError):
    """A model file could not be fetched or written."""


class AudioError(MoshiCtlError):
    """An audio file that cannot be read."""


class ClientError(MoshiCtlError):
    """A conversation with a server that did not come about or broke off."""


class NoFreeChannelsError(ClientError):
    """The server serves as many streams as it can; try again later."""
