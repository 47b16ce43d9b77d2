"""Every marker is answered once, after all the audio before it, or its session is told why not."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import pairwise

import numpy as np
import pytest

from chaos.clean_streams import DELAY_FRAMES, TAIL, TIMEOUT_S, minutes_of_speech
from chaos.conftest import Start
from chaos.processes import resident_bytes
from chaos.raw_session import (
    INVALID_DATA,
    POLICY,
    assert_explained,
    encode,
    ending,
    join,
    next_event,
)
from chaos.raw_websocket import Frame
from moshi_ctl.client import AsrClient
from moshi_ctl.protocol import (
    FRAME_SAMPLES,
    Marker,
    Samples,
    Step,
    encode_audio,
    encode_marker,
)
from support.worker import KEY, Worker

SEEDS = [29, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(100, 150))]
MARKERS = 1_000
LANES = 6


async def answers(asr: AsrClient, last: int) -> list[tuple[int, int]]:
    """Each marker's id, and the steps before its answer; up to the last one."""
    steps, answered = 0, []
    async for event in asr:
        if isinstance(event, Step):
            steps += 1
        elif isinstance(event, Marker):
            answered.append((event.id, steps))
            if event.id == last:
                break
    return answered


async def ask(url: str, samples: Samples, positions: list[int]) -> list[tuple[int, int]]:
    """Says all samples, with a marker at each position; what was answered, and after what."""
    last = len(positions)
    async with AsrClient(url, key=KEY) as asr:
        listening = asyncio.create_task(answers(asr, last))
        for number, (start, end) in enumerate(pairwise([0, *positions])):
            if end > start:
                await asr.send_audio(samples[start:end])
            await asr.send_marker(number)
        await asr.send_audio(TAIL)
        await asr.send_marker(last)
        await asr.send_audio(TAIL)
        return await asyncio.wait_for(listening, TIMEOUT_S)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_thousand_anywhere_on_several_lanes_at_once(crowded: Worker, seed: int) -> None:
    dice = np.random.default_rng(seed)
    samples = minutes_of_speech(1)
    # Several at one place, and at the very beginning, are positions too.
    positions = [
        sorted([0, 0, FRAME_SAMPLES, *dice.integers(0, len(samples), MARKERS - 3).tolist()])
        for _ in range(LANES)
    ]

    async def all_lanes() -> list[list[tuple[int, int]]]:
        return await asyncio.gather(*(ask(crowded.url, samples, where) for where in positions))

    for where, answered in zip(positions, asyncio.run(all_lanes()), strict=True):
        due = [-(-position // FRAME_SAMPLES) + DELAY_FRAMES for position in where]
        assert answered[:-1] == list(enumerate(due))
        assert answered[-1][0] == MARKERS


def test_those_of_a_session_that_fails_are_not_answered_twice(crowded: Worker) -> None:
    with join(crowded.port) as session:
        for number in range(100):
            session.send_message(encode_audio(np.zeros(500, dtype=np.float32)))
            session.send_message(encode_marker(number))
        session.send_message(encode("Audio", pcm=[float("nan")] * FRAME_SAMPLES))
        session.send_message(encode_marker(100))
        end = ending(session)
    assert_explained(end, INVALID_DATA)
    answered = [event.id for event in end.events if isinstance(event, Marker)]
    assert answered == list(range(len(answered)))
    # 50,000 samples are 26 frames and a bit; the last of them cannot have come through.
    assert 50 < len(answered) < 100


def test_ids_are_returned_as_they_came(crowded: Worker) -> None:
    ids = [0, -1, 2**63 - 1, -(2**63), 7, 7, 7]
    with join(crowded.port) as session:
        for number in ids:
            session.send_message(encode_marker(number))
        session.send_message(encode_audio(TAIL))
        answered: list[int] = []
        while len(answered) < len(ids):
            event = next_event(session)
            assert event is not None
            if isinstance(event, Marker):
                answered.append(event.id)
    assert answered == ids


def test_too_many_end_the_session_and_memory_stays_where_it_was(start: Start) -> None:
    with start() as server, join(server.port) as session:
        before = resident_bytes(server)
        message = Frame(encode_marker(1)).encode() * 1_000
        with contextlib.suppress(OSError):
            for _ in range(1_000):
                session.socket.sendall(message)
        assert_explained(ending(session), POLICY)
        assert resident_bytes(server) - before < 32 << 20
