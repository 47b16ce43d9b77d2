"""A worker takes no more memory, files or threads the more sessions it has had.

The bounds are for each session. What the control leaks is well above them, so a judgement that
passes everything fails here.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from soak import amounts
from support.crowd import KINDS, Crowd, Target
from support.exposition import sums
from support.faults import failing, needs_faults
from support.growth import Growth, Reading
from support.worker import KEY, worker

AT_ONCE = 3
READINGS = 40
SOME_SESSIONS = 280
# A reading may be off by some hundred KB, which weighs more where there were few sessions.
MOST_BYTES_OF_SOME = 8_192.0
MOST_BYTES = 512.0
LEAK_OF_SOME = 65_536
LEAK = 4_096
# One that stays behind in two hundred sessions would exhaust the usual limit in a day.
MOST_DESCRIPTORS = 0.005
MOST_THREADS = 0.005


def readings(tiny_dir: Path, sessions: int, env: dict[str, str] | None = None) -> list[Reading]:
    """A worker of its own after more and more sessions; what they were told was right."""
    environment = {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "MOSHI_API_KEY": KEY, **(env or {})}
    with worker("tiny-random", cwd=tiny_dir, env=environment) as server:
        crowd = Crowd(Target(server.process.pid, server.port, KEY), AT_ONCE)
        taken = crowd.run(sessions, READINGS)
        done = crowd.done
        assert done.total() == sessions
        assert all(done[kind.__name__] for kind in KINDS), done
        assert sums(server, kind="stream")["moshi_sessions_total"] == sum(
            done[name] for name in ("speak", "speak_opus", "send_nonsense")
        )
    return taken


def leaking(leak_bytes: int) -> dict[str, str]:
    """A worker that loses so many bytes whenever a lane is reset."""
    return failing(f"leak:{leak_bytes}")


def test_some_sessions_leave_nothing_behind(tiny_dir: Path) -> None:
    growth = Growth.of(readings(tiny_dir, SOME_SESSIONS))
    assert growth.resident_bytes <= MOST_BYTES_OF_SOME
    assert growth.descriptors <= MOST_DESCRIPTORS
    assert growth.threads <= MOST_THREADS


@needs_faults
def test_some_sessions_are_enough_to_find_a_leak(tiny_dir: Path) -> None:
    growth = Growth.of(readings(tiny_dir, SOME_SESSIONS, leaking(LEAK_OF_SOME)))
    assert growth.resident_bytes > MOST_BYTES_OF_SOME


@pytest.mark.soak
def test_many_sessions_leave_nothing_behind(tiny_dir: Path) -> None:
    growth = Growth.of(readings(tiny_dir, amounts.SESSIONS))
    print(growth)
    assert growth.resident_bytes <= MOST_BYTES
    assert growth.descriptors <= MOST_DESCRIPTORS
    assert growth.threads <= MOST_THREADS


@pytest.mark.soak
@needs_faults
def test_many_sessions_find_a_leak_of_a_page(tiny_dir: Path) -> None:
    growth = Growth.of(readings(tiny_dir, amounts.SESSIONS, leaking(LEAK)))
    print(growth)
    assert growth.resident_bytes > MOST_BYTES
