"""RFC 6455 frame by frame: what is right is understood, what is wrong is answered as it says."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest

from chaos import raw_websocket
from chaos.clean_streams import Heard, heard
from chaos.proxy import Direction, Trickle, proxy
from chaos.raw_session import (
    AUTHORIZED,
    INVALID_DATA,
    PROTOCOL_ERROR,
    TOO_BIG,
    assert_explained,
    ending,
    finish,
    join,
    next_event,
)
from chaos.raw_websocket import Frame, Opcode, RefusedError, close_frame, fragments
from moshi_ctl.addresses import DEFAULT_PATH
from moshi_ctl.protocol import FRAME_SAMPLES, Marker, Samples, encode_audio, encode_marker
from support.worker import Worker

SEED = 6455


def test_fragments_with_control_frames_between_are_one_message(
    crowded: Worker, audio: Samples, expected: Heard
) -> None:
    dice = random.Random(SEED)
    message = encode_audio(audio)
    sizes = [dice.choice([0, 1, 125, 126, 5_000, 70_000]) for _ in range(30)]
    frames = fragments(message, sizes)
    with join(crowded.port) as session:
        for number, frame in enumerate(frames):
            session.send(frame)
            session.send(Frame(b"%d" % number, Opcode.PING), Frame(b"unasked", Opcode.PONG))
            # The answer does not wait for the message's end.
            answer = session.receive()
            while answer.opcode == Opcode.BINARY:
                assert number == len(frames) - 1, "heard before the message was over"
                answer = session.receive()
            assert answer == Frame(b"%d" % number, Opcode.PONG, mask=None)
            if number == len(frames) - 2:
                break
        session.send(frames[-1])
        assert heard(finish(session)) == expected


@pytest.mark.parametrize("length", [0, 1, 125])
def test_a_ping_is_answered_with_what_it_said(crowded: Worker, length: int) -> None:
    with join(crowded.port) as session:
        session.send(Frame(b"p" * length, Opcode.PING))
        assert session.receive() == Frame(b"p" * length, Opcode.PONG, mask=None)
        session.send(Frame(b"nobody asked", Opcode.PONG))
        assert finish(session)


def test_every_mask_is_taken_off(crowded: Worker) -> None:
    dice = random.Random(SEED)
    with join(crowded.port) as session:
        for number in range(50):
            mask = [bytes(4), b"\xff\xff\xff\xff", dice.randbytes(4)][number % 3]
            session.send(Frame(encode_marker(number), mask=mask))
        session.send_message(encode_audio(np.zeros(FRAME_SAMPLES, dtype=np.float32)))
        answered = [event.id for event in finish(session) if isinstance(event, Marker)]
        assert answered[:-1] == list(range(50))


def test_connections_that_come_byte_by_byte(
    crowded: Worker, audio: Samples, expected: Heard
) -> None:
    with proxy(crowded.port) as between:
        for way in Direction:
            between.switch(way, Trickle())
        with join(between.port) as session:
            session.send_message(encode_audio(audio[:1_000]))
            between.switch(Direction.TO_SERVER, None)
            session.send_message(encode_audio(audio[1_000:]))
            assert heard(finish(session)) == expected


WRONG: dict[str, tuple[list[Frame], int]] = {
    "rsv1": ([Frame(b"x", rsv=4)], PROTOCOL_ERROR),
    "rsv2": ([Frame(b"x", rsv=2)], PROTOCOL_ERROR),
    "rsv3": ([Frame(b"x", rsv=1)], PROTOCOL_ERROR),
    "rsv1 on a ping": ([Frame(b"x", Opcode.PING, rsv=4)], PROTOCOL_ERROR),
    **{f"opcode {code}": ([Frame(b"x", code)], PROTOCOL_ERROR) for code in (3, 7, 11, 15)},
    "no mask": ([Frame(b"x", mask=None)], PROTOCOL_ERROR),
    "a fragmented ping": ([Frame(b"x", Opcode.PING, fin=False)], PROTOCOL_ERROR),
    "a fragmented close": ([Frame(b"\x03\xe8", Opcode.CLOSE, fin=False)], PROTOCOL_ERROR),
    "a long ping": ([Frame(b"x" * 126, Opcode.PING)], PROTOCOL_ERROR),
    "a continuation of nothing": ([Frame(b"x", Opcode.CONTINUATION)], PROTOCOL_ERROR),
    "a message within a message": ([Frame(b"x", fin=False), Frame(b"x")], PROTOCOL_ERROR),
    "a text within a message": ([Frame(b"x", fin=False), Frame(b"x", 1)], PROTOCOL_ERROR),
    "no UTF-8": ([Frame(b"caf\xe9", Opcode.TEXT)], INVALID_DATA),
    "no UTF-8 over two frames": (fragments(b"\xf0\x9f\x98\x20", [2], Opcode.TEXT), INVALID_DATA),
    "half a surrogate": ([Frame(b"\xed\xa0\x80", Opcode.TEXT)], INVALID_DATA),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_frame_is_explained(crowded: Worker, name: str) -> None:
    frames, code = WRONG[name]
    with join(crowded.port) as session:
        session.send(*frames)
        assert_explained(ending(session), code)


def test_a_length_with_its_highest_bit_set_is_refused(crowded: Worker) -> None:
    with join(crowded.port) as session:
        session.send(Frame(claimed_bytes=1 << 63, length_bits=64))
        assert_explained(ending(session), PROTOCOL_ERROR, TOO_BIG)


def test_text_that_is_text_is_ignored(crowded: Worker) -> None:
    with join(crowded.port) as session:
        session.send(*fragments("größer 😀".encode(), [3, 2, 4], Opcode.TEXT))
        assert finish(session)


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1011, 3000, 4999])
def test_a_close_is_answered_with_its_own_code(crowded: Worker, code: int) -> None:
    with join(crowded.port) as session:
        session.send(close_frame(code, "that is all"))
        end = ending(session)
        assert (end.errors, end.code) == ([], code)


def test_a_close_without_a_code_is_answered(crowded: Worker) -> None:
    with join(crowded.port) as session:
        session.send(Frame(opcode=Opcode.CLOSE))
        assert session.until_closed() == []
        assert session.closed
        assert session.code in (None, 1000)


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        *((struct.pack("!H", number), PROTOCOL_ERROR) for number in (0, 999, 1004, 1005, 1006)),
        *((struct.pack("!H", number), PROTOCOL_ERROR) for number in (1015, 1016, 2999, 5000)),
        (b"\x03", PROTOCOL_ERROR),
        (b"\x03\xe8\xff\xfe", INVALID_DATA),
        (b"\x03\xe8" + b"x" * 124, PROTOCOL_ERROR),
    ],
)
def test_a_wrong_close_is_answered_with_what_is_wrong(
    crowded: Worker, payload: bytes, code: int
) -> None:
    with join(crowded.port) as session:
        session.send(Frame(payload, Opcode.CLOSE))
        assert ending(session).code in {code, PROTOCOL_ERROR}


def test_nothing_behind_a_close_is_heard(crowded: Worker) -> None:
    with join(crowded.port) as session:
        session.send(close_frame(1000), Frame(encode_marker(1)), Frame(b"x", rsv=7))
        end = ending(session)
        assert (end.events, end.errors, end.code) == ([], [], 1000)


@pytest.mark.parametrize(
    ("without", "more"),
    [
        (["Sec-WebSocket-Key"], []),
        (["Sec-WebSocket-Version"], []),
        (["Sec-WebSocket-Version"], [("Sec-WebSocket-Version", "12")]),
        (["Upgrade"], []),
        (["Connection"], []),
        (["Upgrade"], [("Upgrade", "h2c")]),
    ],
)
def test_a_wrong_handshake_is_refused_with_a_reason(
    crowded: Worker, without: list[str], more: list[tuple[str, str]]
) -> None:
    with pytest.raises(RefusedError) as caught:
        raw_websocket.connect(crowded.port, DEFAULT_PATH, [*AUTHORIZED, *more], without=without)
    assert caught.value.status in {400, 426}
    assert caught.value.body


def test_frames_right_behind_the_handshake_are_heard(crowded: Worker) -> None:
    with raw_websocket.dial(crowded.port) as session:
        frames = Frame(encode_marker(7)).encode()
        session.socket.sendall(
            raw_websocket.upgrade_request(crowded.port, headers=AUTHORIZED) + frames
        )
        session.finish_handshake()
        next_event(session)
        assert Marker(7) in finish(session)
