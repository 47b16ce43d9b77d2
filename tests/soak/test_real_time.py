"""Those who were let in keep real time, whatever the others do."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from chaos.processes import lanes_in_use
from moshi_ctl.protocol import FRAME_S
from soak import amounts
from support.crowd import NoLaneError, Target, connected, received
from support.exposition import sums
from support.growth import slope
from support.paced import Paced, blasting
from support.waiting import wait_until
from support.worker import KEY, Worker, worker

LANES = 4
REFUSED_PER_S = 50
REFUSED_WITHIN_S = 5.0
MOST_WAITING_FRAMES = 25


async def knock_until(end_s: float, target: Target) -> int:
    """Comes fifty times a second, finds the server full and goes; how often."""
    refused = 0
    waiting: set[asyncio.Task[None]] = set()

    async def knock() -> None:
        nonlocal refused
        with pytest.raises(NoLaneError):
            async with connected(target, KEY) as connection:
                await asyncio.wait_for(received(connection), REFUSED_WITHIN_S)
        refused += 1

    while time.monotonic() < end_s:
        await asyncio.sleep(1 / REFUSED_PER_S)
        waiting.add(asyncio.create_task(knock()))
        done = {task for task in waiting if task.done()}
        for task in done:
            task.result()
        waiting -= done
    await asyncio.gather(*waiting)
    return refused


def steps(server: Worker, most_s: float) -> tuple[float, float]:
    """How many steps took no longer, and how many there were, as the server counts them."""
    buckets = {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(server.get("/metrics"))
        for sample in family.samples
        if sample.name == "moshi_step_duration_seconds_bucket"
    }
    within = max(count for bound, count in buckets.items() if bound <= most_s)
    return within, buckets[float("inf")]


@pytest.mark.soak
def test_who_was_let_in_keeps_real_time(tiny_dir: Path) -> None:
    seconds = 60 * amounts.MINUTES
    env = {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "MOSHI_API_KEY": KEY}
    with (
        worker("tiny-random", cwd=tiny_dir, env=env) as server,
        blasting(server.port, KEY) as blast,
    ):
        target = Target(server.process.pid, server.port, KEY)
        clients = [Paced() for _ in range(LANES - 1)]

        async def everybody() -> int:
            speaking = [
                asyncio.create_task(client.speak(server.url, KEY, seconds)) for client in clients
            ]
            await asyncio.to_thread(wait_until, lambda: lanes_in_use(server) == LANES)
            refused = await knock_until(time.monotonic() + seconds - 1, target)
            await asyncio.gather(*speaking)
            return refused

        refused = asyncio.run(everybody())
        assert blast.is_alive()
        assert blast.sent_s > 2 * seconds, "it was to be faster than speech"
        assert refused > REFUSED_PER_S / 2 * seconds
        assert sums(server, reason="full")["moshi_refusals_total"] == refused
        within, all_steps = steps(server, FRAME_S)
        print(f"{within:.0f} of {all_steps:.0f} steps in time; {blast.sent_s:.0f} s blasted")
        assert within >= 0.99 * all_steps
        for client in clients:
            grown_s = slope(client.times_s[::10], client.lags_s[::10]) * seconds
            print(f"lag {max(client.lags_s):.2f} s at most, grown by {grown_s:.3f} s")
            assert grown_s < FRAME_S
            assert client.sent_frames - client.taken_frames <= MOST_WAITING_FRAMES
