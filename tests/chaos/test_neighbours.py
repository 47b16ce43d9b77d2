"""A lane hears what was said in it: not what others say, nor what was said before."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import numpy as np
import pytest

from chaos.clean_streams import (
    FreshServers,
    Heard,
    clean_streams,
    converse,
    heard,
    minutes_of_speech,
    say,
)
from chaos.conftest import LANES
from chaos.raw_session import (
    INTERNAL_ERROR,
    INVALID_DATA,
    assert_explained,
    encode,
    ending,
    finish,
    join,
    outcome,
)
from chaos.raw_websocket import RawWebSocket
from moshi_ctl.client import AsrClient
from moshi_ctl.protocol import (
    FRAME_SAMPLES,
    SAMPLE_RATE_HZ,
    Ready,
    Samples,
    Step,
    encode_audio,
    encode_marker,
)
from support.waiting import wait_until
from support.worker import KEY, Worker

SEED = 24


def noise(seconds: float) -> Samples:
    dice = np.random.default_rng(SEED)
    return dice.uniform(-1, 1, round(seconds * SAMPLE_RATE_HZ)).astype(np.float32)


async def in_all_lanes(server: Worker, lanes: int, said: Callable[[int], Samples]) -> list[Heard]:
    """What each lane hears when all are taken before anybody speaks."""
    async with contextlib.AsyncExitStack() as stack:
        sessions = [
            await stack.enter_async_context(AsrClient(server.url, key=KEY)) for _ in range(lanes)
        ]
        assert server.modules()[0]["used_slots"] == str(lanes)
        return await asyncio.gather(
            *(
                converse(session, said(lane), chunk=FRAME_SAMPLES - 31 * lane)
                for lane, session in enumerate(sessions)
            )
        )


def until_free(server: Worker) -> None:
    wait_until(lambda: server.modules()[0]["used_slots"] == "0")


def test_every_lane_of_a_full_batch_hears_what_one_alone_does(
    crowded: Worker, audio: Samples, expected: Heard
) -> None:
    until_free(crowded)
    assert asyncio.run(in_all_lanes(crowded, LANES, lambda _: audio)) == [expected] * LANES


def test_what_others_say_changes_nothing(
    crowded: Worker, fresh: FreshServers, audio: Samples, expected: Heard
) -> None:
    until_free(crowded)
    loud = noise(8.0)
    others = {1: loud, 3: audio[::-1].copy()}
    said = asyncio.run(in_all_lanes(crowded, LANES, lambda lane: others.get(lane % 4, audio)))
    assert said[0::4] + said[2::4] == [expected] * (LANES // 2)
    for place, other in others.items():
        assert said[place::4] == [fresh.hear(other)] * (LANES // 4)


@pytest.mark.parametrize("chunk", [160, 480, FRAME_SAMPLES - 1, FRAME_SAMPLES, 24_000, 10**6])
def test_the_size_of_messages_changes_nothing(
    crowded: Worker, audio: Samples, expected: Heard, chunk: int
) -> None:
    assert say(crowded.url, audio, chunk=chunk) == expected


def test_samples_may_come_one_by_one(crowded: Worker, audio: Samples, expected: Heard) -> None:
    alone = SAMPLE_RATE_HZ // 2
    with join(crowded.port) as session:
        for at in range(alone):
            session.send_message(encode_audio(audio[at : at + 1]))
        session.send_message(encode_audio(audio[alone:]))
        assert heard(finish(session)) == expected


def loudness(value: float) -> Samples:
    return np.full(4 * FRAME_SAMPLES, value, dtype=np.float32)


def speaks(samples: Samples) -> Callable[[RawWebSocket], None]:
    def speak(session: RawWebSocket) -> None:
        session.send_message(encode_audio(samples))
        finish(session)

    return speak


def fails(samples: Samples) -> Callable[[RawWebSocket], None]:
    def fail(session: RawWebSocket) -> None:
        session.send_message(encode_audio(samples))
        assert_explained(ending(session), INVALID_DATA, INTERNAL_ERROR)

    return fail


def vanishes(session: RawWebSocket) -> None:
    """In the middle of a frame, with markers unanswered and a message half sent."""
    session.send_message(encode_audio(noise(2.01)))
    session.send_message(encode_marker(1))
    session.socket.sendall(b"\x82\xfe\xff\xff")
    session.reset()


BEFORE: dict[str, Callable[[RawWebSocket], None]] = {
    "noise": speaks(noise(10.0)),
    "speech beyond the context": speaks(minutes_of_speech(0.5)),
    "as loud as it gets": speaks(loudness(1.0)),
    "NaN": fails(np.concatenate([noise(1.0), loudness(float("nan"))])),
    "infinity": fails(np.concatenate([noise(1.0), loudness(float("inf"))])),
    "a client that vanishes": vanishes,
}


@pytest.mark.parametrize("before", BEFORE)
def test_nobody_hears_who_had_the_lane_before(
    server: Worker, audio: Samples, expected: Heard, before: str
) -> None:
    lanes = int(server.modules()[0]["total_slots"])
    until_free(server)
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(join(server.port)) for _ in range(lanes)]
        for session in sessions:
            BEFORE[before](session)
    until_free(server)
    assert asyncio.run(in_all_lanes(server, lanes, lambda _: audio)) == [expected] * lanes


def test_an_init_is_a_fresh_start(crowded: Worker, audio: Samples, expected: Heard) -> None:
    with join(crowded.port) as session:
        session.send_message(encode_audio(noise(3.03)))
        session.send_message(encode("Init"))
        session.send_message(encode_audio(audio))
        events = finish(session)
        assert Ready() in events
        assert heard(events[events.index(Ready()) + 1 :]) == expected


MUST_FAIL: dict[str, list[float]] = {
    "NaN": [float("nan")],
    "infinity": [float("inf")],
    "minus infinity": [float("-inf")],
    # As 32-bit floats these are infinite.
    "1e39": [1e39],
    "1e300": [-1e300],
}
MAY_FAIL: dict[str, list[float]] = {
    "1e38": [1e38],
    "1e38 and back": [1e38, -1e38],
    "3.4e38": [3.4e38],
    "1e10": [1e10, -1e10, 0.0],
    "denormals": [1e-45, -1e-40],
    "denormals of 64 bits": [5e-324],
    "minus zero": [-0.0],
    "integers": [2**62, -(2**63)],
}


def test_numbers_that_are_none_end_their_own_session_only(
    crowded: Worker, audio: Samples, expected: Heard
) -> None:
    with clean_streams(crowded.url, audio, expected):
        for values in MUST_FAIL.values():
            for where in (0, 1, FRAME_SAMPLES - 1, 3 * FRAME_SAMPLES + 7):
                pcm = [0.1] * 6 * FRAME_SAMPLES
                pcm[where : where + len(values)] = values
                with join(crowded.port) as session:
                    session.send_message(encode("Audio", pcm=pcm))
                    assert_explained(ending(session), INVALID_DATA)


def test_numbers_at_the_edge_are_heard_or_explained(
    crowded: Worker, audio: Samples, expected: Heard
) -> None:
    with clean_streams(crowded.url, audio, expected):
        for values in MAY_FAIL.values():
            with join(crowded.port) as session:
                pcm = (values * (12 * FRAME_SAMPLES))[: 12 * FRAME_SAMPLES]
                session.send_message(encode("Audio", pcm=pcm))
                end = outcome(session)
                steps = [event for event in end.events if isinstance(event, Step)]
                assert np.isfinite([step.prs for step in steps]).all(), values
                if end.code is None:
                    assert len(steps) >= 12, values
                else:
                    assert_explained(end, INVALID_DATA, INTERNAL_ERROR)
