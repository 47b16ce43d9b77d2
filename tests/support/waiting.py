"""Waiting for what happens elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

TIMEOUT_S = 60.0
POLL_S = 0.05


def wait_until(holds: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    """Looks again and again until it is so."""
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, f"not so within {timeout_s:g} s"
        time.sleep(POLL_S)
