"""Ctrl-C while the extension works."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def ending_the_process() -> Iterator[None]:
    """Takes Python's SIGINT handler away, which could only raise KeyboardInterrupt afterwards.

    Ctrl-C then ends the process at once, unless the extension has a handler of its own.
    """
    previous = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
