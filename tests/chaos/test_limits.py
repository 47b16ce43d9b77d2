"""What is too large or too slow is refused at its limit, in whatever pieces it comes."""

from __future__ import annotations

import contextlib
import time

import pytest

from chaos import malformed, raw_session, raw_websocket
from chaos.clean_streams import Heard, clean_streams
from chaos.conftest import Start
from chaos.processes import lanes_in_use, open_descriptors, resident_bytes
from chaos.raw_session import (
    AUTHORIZED,
    TOO_BIG,
    assert_explained,
    encode,
    ending,
    finish,
    join,
    outcome,
)
from chaos.raw_websocket import ConnectionEndedError, Frame, Opcode, RefusedError, fragments
from moshi_ctl.addresses import DEFAULT_PATH
from moshi_ctl.protocol import Samples
from support import speech
from support.http import Answer, request
from support.waiting import wait_until
from support.worker import KEY, Worker

MIB = 1 << 20
LIMIT = MIB


def message_of(size: int) -> bytes:
    """A proper message of exactly that many bytes."""
    bare = len(encode("Marker", id=1, more=bytes(70_000))) - 70_000
    message = encode("Marker", id=1, more=bytes(size - bare))
    assert len(message) == size
    return message


@pytest.mark.parametrize("pieces", [[], [1], [LIMIT // 2], [0, 100_000, 400_000, 1]])
def test_messages_at_their_limit(start: Start, pieces: list[int]) -> None:
    with start(message_mb=1) as server:
        for size in (LIMIT - 1, LIMIT):
            with join(server.port) as session:
                session.send(*fragments(message_of(size), pieces))
                assert finish(session), size
        for size in (LIMIT + 1, LIMIT + MIB, 8 * MIB):
            with join(server.port) as session:
                with contextlib.suppress(OSError):
                    session.send(*fragments(message_of(size), pieces))
                assert_explained(outcome(session), TOO_BIG)


def test_a_message_that_never_ends_is_refused_at_the_limit(start: Start) -> None:
    fragment = Frame(bytes(10_000), Opcode.CONTINUATION, fin=False).encode()
    with start(message_mb=1) as server:
        before = resident_bytes(server)
        for _ in range(5):
            with join(server.port) as session:
                with contextlib.suppress(OSError):
                    session.send(Frame(b"\x82", fin=False))
                    for _ in range(10_000):
                        session.socket.sendall(fragment)
                assert_explained(ending(session), TOO_BIG)
        assert resident_bytes(server) - before < 16 * MIB


@pytest.mark.parametrize("claimed", [2 * LIMIT + 1, 1 << 32, (1 << 63) - 1])
def test_a_frame_that_claims_too_much_is_refused_at_once(start: Start, claimed: int) -> None:
    with start(message_mb=1) as server, join(server.port) as session:
        before = resident_bytes(server)
        session.send(Frame(b"\x82", claimed_bytes=claimed, length_bits=64))
        assert_explained(ending(session), TOO_BIG)
        assert resident_bytes(server) - before < 16 * MIB


def test_what_only_claims_to_be_large_takes_no_memory(
    start: Start, audio: Samples, expected: Heard
) -> None:
    with start(message_mb=1) as server, clean_streams(server.url, audio, expected):
        before = resident_bytes(server)
        for message in [*malformed.HOLLOW, *malformed.DEEP] * 5:
            if len(message) <= LIMIT:
                with join(server.port) as session:
                    session.send_message(message)
                    outcome(session)
        assert resident_bytes(server) - before < 32 * MIB


def wav_of(size: int) -> bytes:
    """An audio file of exactly that many bytes; what is too much is behind its audio."""
    body = speech.SPEECH.read_bytes()[:200_000]
    return body + bytes(size - len(body))


def post(server: Worker, body: bytes) -> Answer:
    return request(server.port, "POST", DEFAULT_PATH, body, {"kyutai-api-key": KEY})


def test_bodies_at_their_limit(start: Start) -> None:
    with start(body_mb=1) as server:
        assert post(server, wav_of(LIMIT - 1)).status == 200
        assert post(server, wav_of(LIMIT)).status == 200
        answer = post(server, wav_of(LIMIT + 1))
        assert answer.status == 413
        assert str(LIMIT).encode() in answer.body
        # Before it comes, where it is announced.
        status, _ = raw_session.post(server.port, Content_Length=str(1 << 40))
        assert status == 413
        # In pieces whose sum nobody announced.
        chunk = b"%x\r\n%b\r\n" % (100_000, bytes(100_000))
        status, _ = raw_session.post(server.port, *[chunk] * 11, Transfer_Encoding="chunked")
        assert status == 413


def test_bodies_are_not_held_beyond_what_all_may_take(start: Start) -> None:
    with (
        start(body_mb=2, bodies_mb=4) as server,
        contextlib.ExitStack() as stack,
    ):
        held = []
        for _ in range(6):
            client = stack.enter_context(raw_websocket.dial(server.port))
            headers = [*AUTHORIZED, ("Content-Length", str(2 * MIB))]
            client.socket.sendall(raw_websocket.post_request(server.port, headers) + bytes(MIB))
            client.socket.settimeout(1.0)
            held.append(client)
        refused = 0
        for client in held:
            with contextlib.suppress(TimeoutError):
                status, headers_of = client.read_head()
                assert status == 503
                assert int(headers_of["retry-after"]) > 0
                refused += 1
        assert 2 <= refused <= 5


def test_a_body_that_stalls_is_given_up(start: Start) -> None:
    with start(body_idle_s=1) as server:
        assert raw_session.post(server.port, bytes(1000), Content_Length="100000")[0] == 408
        assert lanes_in_use(server) == 0


def test_heads_are_refused_at_their_limit(start: Start, audio: Samples, expected: Heard) -> None:
    with start(header_kb=8) as server, clean_streams(server.url, audio, expected):
        before = resident_bytes(server)
        raw_websocket.connect(
            server.port, headers=[*AUTHORIZED, ("X-More", "x" * 7_000)]
        ).socket.close()
        for headers in (
            [("X-More", "x" * 9_000)],
            [(f"X-{number}", "x") for number in range(2_000)],
            [("X-More", "x" * MIB)],
        ):
            with pytest.raises((RefusedError, ConnectionEndedError, OSError)) as caught:
                raw_websocket.connect(server.port, headers=[*AUTHORIZED, *headers])
            if isinstance(caught.value, RefusedError):
                assert caught.value.status == 431
        assert resident_bytes(server) - before < 16 * MIB


SLOW = 200


def test_handshakes_that_drip_hold_nobody_up(start: Start, audio: Samples, expected: Heard) -> None:
    with start(handshake_s=2, connections=2 * SLOW) as server:
        with clean_streams(server.url, audio, expected):
            pass
        wait_until(lambda: lanes_in_use(server) == 0)
        before = open_descriptors(server)
        head = raw_websocket.upgrade_request(server.port, headers=AUTHORIZED)
        with (
            clean_streams(server.url, audio, expected) as streams,
            contextlib.ExitStack() as stack,
        ):
            slow = [stack.enter_context(raw_websocket.dial(server.port)) for _ in range(SLOW)]
            began = time.monotonic()
            dropped = 0
            for byte in head[:12]:
                for client in slow:
                    with contextlib.suppress(OSError):
                        client.socket.sendall(bytes([byte]))
                time.sleep(0.5)
            for client in slow:
                with contextlib.suppress(ConnectionEndedError):
                    assert client.read_head()[0] == 408
                dropped += 1
            assert dropped == SLOW
            assert time.monotonic() - began < 30
            assert streams.sessions > 0
        wait_until(lambda: open_descriptors(server) <= before + 2)


def test_of_too_many_handshakes_the_oldest_goes(start: Start) -> None:
    most = 8
    with start(handshakes=most, handshake_s=60) as server, contextlib.ExitStack() as stack:
        slow = []
        for _ in range(3 * most):
            client = stack.enter_context(raw_websocket.dial(server.port))
            client.socket.sendall(b"GET / HTTP/1.1\r\n")
            slow.append(client)
            time.sleep(0.02)
        # Somebody who is in earnest is served meanwhile.
        with join(server.port) as session:
            assert finish(session)
        for client in slow[: 2 * most]:
            with pytest.raises(ConnectionEndedError):
                client.read_head()
        for client in slow[2 * most + 2 :]:
            client.socket.sendall(b"Host: x\r\nConnection: close\r\n\r\n")
            assert client.read_head()[0] in {200, 404}


def test_an_idle_connection_is_not_kept_for_ever(start: Start) -> None:
    with start(handshake_s=1) as server, raw_websocket.dial(server.port) as client:
        client.socket.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        status, headers = client.read_head()
        assert status == 200
        assert client.read_exactly(int(headers["content-length"]))
        with pytest.raises(ConnectionEndedError):
            client.read_head()
