"""One log for both halves of the program: Python's messages go where the server's go."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from moshi_ctl import _native
from moshi_ctl.config import Config
from moshi_ctl.errors import MoshiCtlError
from moshi_ctl.units import BYTES_PER_MIB

TEXT: Final = "text"
JSON: Final = "json"

DEFAULT_MAX_SIZE_MIB: Final = 100
DEFAULT_MAX_FILES: Final = 10
MOST_FILES: Final = 1000

_OURS: Final = "moshi_ctl"

# Python's levels, and what they are called in the log.
_LEVELS: Final = (
    (logging.ERROR, "error"),
    (logging.WARNING, "warn"),
    (logging.INFO, "info"),
    (logging.DEBUG, "debug"),
    (logging.NOTSET + 1, "trace"),
)

# Whoever logs every address that it asks logs what is signed into them too.
_TELL_ADDRESSES: Final = ("httpx", "httpcore", "urllib3")


@dataclass(frozen=True)
class LogOptions:
    """How a worker logs.

    Attributes:
        level: How much: `error`, `warn`, `info`, `debug` or `trace`.
        format: `text` or `json`, on the console and in files.
        silent: Whether the console stays empty.
        max_size_mib: How big a file becomes before the next one is begun.
        max_files: How many files are kept beside the one that is written.
        otlp_endpoint: Address of the OpenTelemetry collector that gets traces, if one does.
    """

    level: str = "info"
    format: str = TEXT
    silent: bool = False
    max_size_mib: int = DEFAULT_MAX_SIZE_MIB
    max_files: int = DEFAULT_MAX_FILES
    otlp_endpoint: str | None = None

    @property
    def console_is_for_people(self) -> bool:
        """Whether tables and progress bars may be on the console."""
        return not self.silent and self.format == TEXT


@contextmanager
def running(configuration: Config, options: LogOptions) -> Iterator[None]:
    """Logs to the console and to the files of the configuration while something runs.

    What ends it is logged as one error, but not shown on a console for people: there it is what
    the command ends with.

    Raises:
        UsageError: When the address of the collector is none.
    """
    _native.start_logging(
        log_dir=configuration.log_dir,
        instance_name=configuration.instance_name,
        level=options.level,
        log_format=options.format,
        silent=options.silent,
        max_file_bytes=options.max_size_mib * BYTES_PER_MIB,
        max_files=options.max_files,
        otlp_endpoint=options.otlp_endpoint,
    )
    root, ours = logging.getLogger(), logging.getLogger(_OURS)
    level = next(number for number, name in _LEVELS if name == options.level)
    # Libraries may print requests in full below that, keys included.
    levels = {ours: level, root: max(level, logging.INFO)}
    levels |= {logging.getLogger(name): max(level, logging.WARNING) for name in _TELL_ADDRESSES}
    before = {logger: logger.level for logger in levels}
    for logger, number in levels.items():
        logger.setLevel(number)
    handler = _Forward()
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    except MoshiCtlError as error:
        ours.error(_with_hint(str(error), error.hint), extra=_NOT_ON_CONSOLE)
        raise
    except Exception:
        ours.exception("the program failed; please report this", extra=_NOT_ON_CONSOLE)
        raise
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        for logger, number in before.items():
            logger.setLevel(number)
        _native.stop_logging()


def warn(message: str, *, hint: str | None = None) -> None:
    """Logs a warning."""
    logging.getLogger(_OURS).warning(_with_hint(message, hint))


def note(message: str) -> None:
    """Logs what a console for people shows in another way."""
    logging.getLogger(_OURS).info(message, extra=_NOT_ON_CONSOLE)


# An attribute of a record that `_Forward` looks for.
_NOT_ON_CONSOLE: Final = {"moshi_ctl_not_on_console": True}


class _Forward(logging.Handler):
    """Hands records to the server's log."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = self.format(record).rstrip().encode("utf-8", "backslashreplace").decode()
            level = next((name for least, name in _LEVELS if record.levelno >= least), "trace")
            hidden = any(hasattr(record, name) for name in _NOT_ON_CONSOLE)
            _native.log(level, record.name, message, on_console=not hidden)
        except Exception:  # noqa: BLE001 - as every handler: a message ends nothing
            self.handleError(record)


def _with_hint(message: str, hint: str | None) -> str:
    return f"{message}; {hint}" if hint else message
