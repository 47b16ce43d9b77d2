"""Clients that vanish at any moment give back their lane, and leave nothing behind."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from chaos.processes import lanes_in_use
from soak import amounts
from support import vanishing
from support.crowd import Crowd, Target, speak
from support.exposition import sums
from support.growth import Growth, Reading
from support.waiting import wait_until
from support.worker import KEY, Worker, worker

READINGS = 40
KILLED_AT_ONCE = 6
MOST_BYTES = 1_024.0
MOST_DESCRIPTORS = 0.005
MOST_THREADS = 0.005


def wait_until_nobody_is_there(server: Worker) -> None:
    wait_until(lambda: lanes_in_use(server) == 0)


@pytest.mark.soak
def test_vanished_clients_leave_nothing_behind(tiny_dir: Path) -> None:
    seed = time.time_ns() % 2**32
    print(f"seed {seed}, {amounts.CLIENTS} clients")
    luck = random.Random(seed)
    env = {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "MOSHI_API_KEY": KEY}
    with worker("tiny-random", cwd=tiny_dir, env=env) as server:
        target = Target(server.process.pid, server.port, KEY)
        every = max(4 * KILLED_AT_ONCE, amounts.CLIENTS // READINGS)
        readings = []
        for done in range(0, amounts.CLIENTS, every):
            vanishing.come_and_go(server.port, KEY, every - KILLED_AT_ONCE, luck)
            vanishing.killed(server.port, KEY, KILLED_AT_ONCE, luck.randrange(2**32))
            wait_until_nobody_is_there(server)
            # Somebody who stays is served as if nothing had happened.
            Crowd(target, at_once=2, kinds=[speak]).run(4, 1)
            wait_until_nobody_is_there(server)
            readings.append(Reading.of(server.process.pid, done + every))
        growth = Growth.of(readings)
        print(growth)
        assert growth.descriptors <= MOST_DESCRIPTORS
        assert growth.threads <= MOST_THREADS
        assert growth.resident_bytes <= MOST_BYTES
        for kind in ("stream", "file"):
            begun = sums(server, kind=kind)["moshi_sessions_total"]
            assert begun > 0
            assert sums(server, kind=kind)["moshi_sessions_ended_total"] == begun
