"""How much the long tests do; `make soak SOAK_SESSIONS=500` for less of it."""

from __future__ import annotations

import os


def _number(name: str, default: float) -> float:
    return float(os.environ.get(name) or default)


SESSIONS = int(_number("SOAK_SESSIONS", 10_000))
CLIENTS = int(_number("SOAK_CLIENTS", 10_000))
MINUTES = _number("SOAK_MINUTES", 10)
AUDIO_MINUTES = _number("SOAK_AUDIO_MINUTES", 60)
