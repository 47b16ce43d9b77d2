"""Waiting for what takes a moment, and not for ever."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 30.0


def until(is_so: Callable[[], bool], timeout_s: float = PATIENCE_S, every_s: float = 0.05) -> None:
    """Returns once it is so; fails when that takes longer than only a bug would make it."""
    end = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end, f"still not so after {timeout_s:g} s"
        time.sleep(every_s)
