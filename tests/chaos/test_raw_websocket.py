"""That frames written by hand mean to a library what they should, and the other way round."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from chaos import raw_websocket
from chaos.raw_websocket import (
    Frame,
    Opcode,
    RawWebSocket,
    RefusedError,
    close_frame,
    fragments,
)


def echo(connection: ServerConnection) -> None:
    """Says everything back; `big` gets an answer in three frames, `bye` a close."""
    try:
        for message in connection:
            if message == "bye":
                connection.close(4001, "good bye")
            elif message == "big":
                connection.send([b"one", b"two", b"three"])
            else:
                connection.send(message)
    except ConnectionClosed:
        pass  # The test looks at its own end.


@pytest.fixture(name="port", scope="module")
def _port() -> Iterator[int]:
    with serve(echo, "127.0.0.1", 0, compression=None, max_size=1 << 20) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.socket.getsockname()[1]
        server.shutdown()
        thread.join()


@pytest.fixture(name="ends")
def _ends(port: int) -> Iterator[RawWebSocket]:
    with raw_websocket.connect(port, "/any") as ends:
        yield ends


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65_535, 65_536, 100_001])
def test_every_length_comes_back(ends: RawWebSocket, length: int) -> None:
    payload = (bytes(range(256)) * 400)[:length]
    ends.send_message(payload)
    answer = ends.receive()
    assert answer == Frame(payload, Opcode.BINARY, mask=None)


def test_a_message_in_pieces_is_one_message(ends: RawWebSocket) -> None:
    ends.send(*fragments(b"0123456789", [1, 0, 4]))
    assert ends.next_message() == b"0123456789"
    ends.send(Frame(b"big", Opcode.TEXT))
    assert ends.next_message() == b"onetwothree"


def test_pings_are_answered(ends: RawWebSocket) -> None:
    ends.send(Frame(b"are you there", Opcode.PING))
    assert ends.receive() == Frame(b"are you there", Opcode.PONG, mask=None)


def test_a_close_by_the_server(ends: RawWebSocket) -> None:
    ends.send_message(b"before")
    ends.send(Frame(b"bye", Opcode.TEXT))
    assert ends.until_closed() == [b"before"]
    assert (ends.closed, ends.code, ends.reason) == (True, 4001, "good bye")


def test_a_close_by_the_client_is_echoed(ends: RawWebSocket) -> None:
    ends.send(close_frame(1000, "enough"))
    assert ends.until_closed() == []
    assert (ends.closed, ends.code) == (True, 1000)


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (Frame(rsv=4), 1002),
        (Frame(opcode=3), 1002),
        (Frame(opcode=11), 1002),
        (Frame(b"x", mask=None), 1002),
        (Frame(b"x", Opcode.PING, fin=False), 1002),
        (Frame(b"x", Opcode.CONTINUATION), 1002),
        (Frame(b"\xff", Opcode.TEXT), 1007),
        (Frame(claimed_bytes=(1 << 20) + 1), 1009),
        (Frame(claimed_bytes=1 << 63, length_bits=64), 1009),
    ],
)
def test_what_is_wrong_arrives_wrong(ends: RawWebSocket, wrong: Frame, code: int) -> None:
    ends.send(wrong)
    ends.until_closed()
    assert ends.code == code


def test_a_connection_that_just_ends(ends: RawWebSocket) -> None:
    ends.send(Frame(claimed_bytes=10))
    ends.fin()
    assert ends.next_message() is None
    assert (ends.closed, ends.code) == (False, None)


def test_a_handshake_that_is_refused(port: int) -> None:
    with pytest.raises(RefusedError) as caught:
        raw_websocket.connect(port, without=["Sec-WebSocket-Key"])
    assert caught.value.status == 400
    assert b"Sec-WebSocket-Key" in caught.value.body
