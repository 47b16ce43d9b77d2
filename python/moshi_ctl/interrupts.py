"""Signals, while the extension works and before."""

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


@contextlib.contextmanager
def hang_up_ends_nothing() -> Iterator[None]:
    """Ignores SIGHUP, which tells a server to read its keys again: one that starts will anyway."""
    if not hasattr(signal, "SIGHUP"):
        yield
        return
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, previous)
