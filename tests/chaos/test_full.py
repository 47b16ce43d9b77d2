"""More clients than there are places for, and clients without a key: told so, and no more."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time

import pytest

from chaos import raw_session, raw_websocket
from chaos.clean_streams import FreshServers, Heard, clean_streams, hear, minutes_of_speech
from chaos.conftest import SECOND_PATH, Start
from chaos.processes import lanes_in_use, open_descriptors
from chaos.raw_session import (
    AUTHORIZED,
    TRY_AGAIN_LATER,
    assert_explained,
    ending,
    finish,
    join,
)
from chaos.raw_websocket import ConnectionEndedError, RawWebSocket, RefusedError
from moshi_ctl.addresses import DEFAULT_PATH
from moshi_ctl.client import AsrClient
from moshi_ctl.errors import NoFreeChannelsError
from moshi_ctl.protocol import Samples
from support import exposition
from support.waiting import wait_until
from support.worker import KEY, Worker

LANES = 4
TOO_MANY = 20
CROWD = 100
# What clients in the field wait for a first message.
SOON_S = 0.5


def refusals(server: Worker, reason: str) -> float:
    return exposition.sums(server, reason=reason)["moshi_refusals_total"]


def test_everybody_beyond_the_lanes_is_told_at_once_and_counted(
    start: Start, audio: Samples, expected: Heard
) -> None:
    with start(lanes=LANES) as server:
        with contextlib.ExitStack() as stack:
            seated = [stack.enter_context(join(server.port)) for _ in range(LANES)]
            took_s = []
            for _ in range(TOO_MANY):
                began = time.monotonic()
                with raw_websocket.connect(server.port, headers=AUTHORIZED) as session:
                    end = ending(session)
                took_s.append(time.monotonic() - began)
                assert_explained(end, TRY_AGAIN_LATER)
                assert end.errors == ["no free channels"]
                began = time.monotonic()
                status, headers = raw_session.post(server.port, Content_Length="1000000")
                took_s.append(time.monotonic() - began)
                assert status in {429, 503}
                assert int(headers["retry-after"]) > 0
            # One of them may have met a busy moment of this machine.
            assert statistics.median(took_s) < SOON_S
            assert refusals(server, "full") == 2 * TOO_MANY
            assert exposition.sums(server, kind="stream")["moshi_sessions_total"] == LANES
            assert exposition.sums(server, kind="file")["moshi_sessions_total"] == 0
            for session in seated:
                assert finish(session)
        wait_until(lambda: lanes_in_use(server) == 0)
        with clean_streams(server.url, audio, expected, count=LANES):
            pass


def test_a_crowd_at_the_door_gets_no_lane(start: Start) -> None:
    async def knock(url: str) -> None:
        with pytest.raises(NoFreeChannelsError):
            await AsrClient(url, key=KEY).__aenter__()

    async def crowd(url: str) -> None:
        await asyncio.gather(*(knock(url) for _ in range(CROWD)))

    with start(lanes=1) as server, join(server.port) as session:
        asyncio.run(crowd(server.url))
        assert refusals(server, "full") == CROWD
        assert finish(session)


OPEN_FILES = 128
CONNECTS = 300


def test_descriptors_that_run_out_harm_no_stream(start: Start, fresh: FreshServers) -> None:
    samples = minutes_of_speech(0.25)
    expected = fresh.hear(samples)
    with start(open_files=OPEN_FILES) as server:
        wait_until(lambda: exposition.samples(server)["moshi_ready"] == 1)
        before = open_descriptors(server)

        async def through_it_all() -> Heard:
            old = asyncio.create_task(hear(server.url, samples, pause_s=0.02))
            await asyncio.sleep(0.5)
            crowd = await asyncio.to_thread(connects)
            most = open_descriptors(server)
            assert before + 20 < most <= OPEN_FILES
            await asyncio.sleep(0.5)
            assert not old.done(), "it did not see the worst"
            for connection in crowd:
                connection.socket.close()
            return await old

        def connects() -> list[RawWebSocket]:
            crowd = []
            for _ in range(CONNECTS):
                crowd.append(raw_websocket.dial(server.port))
                with contextlib.suppress(OSError):
                    crowd[-1].socket.sendall(b"GET /metrics HTTP/1.1\r\n")
            return crowd

        assert asyncio.run(through_it_all()) == expected
        wait_until(lambda: works(server.port))
        wait_until(lambda: open_descriptors(server) <= before + 2)


def works(port: int) -> bool:
    try:
        with join(port) as session:
            return bool(finish(session))
    except (OSError, ConnectionEndedError):
        return False


LONG_KEY = KEY + "x" * 8_000


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ([], ""),
        ([("kyutai-api-key", "")], ""),
        ([("kyutai-api-key", KEY[:-1])], ""),
        ([("kyutai-api-key", b"\xff\xfe")], ""),
        ([("kyutai-api-key", LONG_KEY)], ""),
        ([("kyutai-api-key", KEY), ("kyutai-api-key", KEY)], ""),
        ([("kyutai-api-key", "wrong"), ("kyutai-api-key", KEY)], ""),
        ([("Authorization", f"Bearer {KEY}")], ""),
        ([], f"?auth_id={KEY}&auth_id={KEY}"),
        ([], "?auth_id=%ff"),
        ([], f"?auth_id={LONG_KEY}"),
    ],
)
def test_without_a_key_there_is_no_upgrade_and_no_lane(
    crowded: Worker, headers: list[tuple[str, str | bytes]], query: str
) -> None:
    path = DEFAULT_PATH + query
    sessions = exposition.sums(crowded)["moshi_sessions_total"]
    unauthorized = refusals(crowded, "unauthorized")
    with pytest.raises(RefusedError) as caught:
        raw_websocket.connect(crowded.port, path, headers)
    assert caught.value.status == 401
    # A body is not asked for, and a wrong handshake is not talked about.
    with raw_websocket.dial(crowded.port) as client:
        more = [*headers, ("Content-Length", "1000000")]
        client.socket.sendall(raw_websocket.post_request(crowded.port, more, path))
        assert client.read_head()[0] == 401
    with pytest.raises(RefusedError) as caught:
        raw_websocket.connect(crowded.port, path, headers, without=["Sec-WebSocket-Key"])
    assert caught.value.status == 401
    assert KEY.encode() not in caught.value.body
    assert refusals(crowded, "unauthorized") == unauthorized + 3
    assert exposition.sums(crowded)["moshi_sessions_total"] == sessions


def test_every_module_asks_for_a_key_also_when_it_is_full(start: Start) -> None:
    with start(lanes=1, modules=2) as server, contextlib.ExitStack() as stack:
        for path in (DEFAULT_PATH, SECOND_PATH):
            seat = raw_websocket.connect(server.port, path, AUTHORIZED)
            stack.enter_context(seat)
            assert seat.next_message()
            for headers in ((), (("kyutai-api-key", "wrong"),)):
                with pytest.raises(RefusedError) as caught:
                    raw_websocket.connect(server.port, path, headers)
                assert caught.value.status == 401
        assert refusals(server, "full") == 0
        assert refusals(server, "unauthorized") == 4
