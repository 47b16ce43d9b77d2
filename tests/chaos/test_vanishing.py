"""Whoever vanishes leaves nothing behind: no lane, no descriptor, no trace in what others hear."""

from __future__ import annotations

import contextlib
import random
import time

import pytest

from chaos.clean_streams import Heard, clean_streams, say
from chaos.conftest import LANES, Start
from chaos.processes import lanes_in_use, open_descriptors
from chaos.proxy import BlackHole, Direction, Stall, proxy
from chaos.raw_session import POLICY, assert_explained, ending, join
from moshi_ctl.protocol import Samples, encode_audio
from support import exposition, vanishing
from support.waiting import wait_until
from support.worker import KEY, Worker

CYCLES = 400
KILLED_AT_ONCE = LANES // 2
KILLS = 6
SEED = 17


def until_nobody_is_left(server: Worker, descriptors: int) -> None:
    wait_until(lambda: lanes_in_use(server) == 0)
    wait_until(lambda: open_descriptors(server) <= descriptors)


@pytest.fixture(name="descriptors")
def _descriptors(crowded: Worker, audio: Samples) -> int:
    """Open descriptors of a server that has served, and serves nobody now."""
    say(crowded.url, audio)
    wait_until(lambda: lanes_in_use(crowded) == 0)
    time.sleep(0.2)
    return open_descriptors(crowded)


def assert_every_session_ended(server: Worker) -> None:
    counted = exposition.sums(server)
    assert counted["moshi_sessions_total"] == counted["moshi_sessions_ended_total"] > 0


def test_at_any_stage_in_any_way(
    crowded: Worker, audio: Samples, expected: Heard, descriptors: int
) -> None:
    luck = random.Random(SEED)
    with clean_streams(crowded.url, audio, expected) as streams:
        for _ in range(CYCLES):
            # Clients that vanished without a word may still have their lane for a moment.
            wait_until(lambda: lanes_in_use(crowded) < LANES, poll_s=0.005)
            vanishing.come_and_go(crowded.port, KEY, 1, luck)
    assert streams.sessions >= 2
    until_nobody_is_left(crowded, descriptors)
    assert say(crowded.url, audio) == expected
    wait_until(lambda: lanes_in_use(crowded) == 0)
    assert_every_session_ended(crowded)


def test_with_the_process_they_are_in(
    crowded: Worker, audio: Samples, expected: Heard, descriptors: int
) -> None:
    with clean_streams(crowded.url, audio, expected):
        for seed in range(KILLS):
            vanishing.killed(crowded.port, KEY, KILLED_AT_ONCE, seed)
    until_nobody_is_left(crowded, descriptors)
    assert_every_session_ended(crowded)


@pytest.mark.parametrize("fault", [BlackHole(), Stall()], ids=["swallowed", "stalled"])
def test_behind_a_network_that_is_gone(
    start: Start, audio: Samples, expected: Heard, fault: BlackHole | Stall
) -> None:
    # Nothing comes any more, not even a FIN or the answer to a ping.
    with (
        start(ping_every_s=0.5, silent_s=2) as server,
        proxy(server.port) as between,
        clean_streams(server.url, audio, expected),
        contextlib.ExitStack() as stack,
    ):
        for number in range(5):
            session = stack.enter_context(join(between.port))
            session.send_message(encode_audio(audio[: 1000 * number]))
        for way in Direction:
            between.switch(way, fault)
        wait_until(lambda: exposition.ended(server, "idle") == 5)


def test_who_is_only_silent_is_told_and_who_answers_pings_is_kept(start: Start) -> None:
    with (
        start(ping_every_s=0.5, silent_s=2, no_data_s=6) as server,
        join(server.port) as silent,
        join(server.port) as attentive,
    ):
        # Reading its messages is what answers its pings.
        began = time.monotonic()
        end = ending(attentive)
        assert time.monotonic() - began > 4
        assert_explained(end, POLICY)
        assert "no data" in end.errors[0]
        end = ending(silent)
        assert_explained(end, POLICY)
        assert "pings" in end.errors[0]
        wait_until(lambda: lanes_in_use(server) == 0)
