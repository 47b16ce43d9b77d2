"""Sessions over raw WebSockets, and what they are told at their end."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import msgpack

from chaos import raw_websocket
from chaos.clean_streams import TAIL
from chaos.raw_websocket import Headers, RawWebSocket
from moshi_ctl import protocol
from moshi_ctl.addresses import DEFAULT_PATH
from moshi_ctl.protocol import Event, Failure, Marker, Ready
from support.worker import KEY

AUTHORIZED: Headers = (("kyutai-api-key", KEY),)

INVALID_DATA = 1007
PROTOCOL_ERROR = 1002
POLICY = 1008
TOO_BIG = 1009
UNSUPPORTED = 1003
GOING_AWAY = 1001
INTERNAL_ERROR = 1011
TRY_AGAIN_LATER = 1013

LAST_MARKER = 4_242


@dataclass
class Outcome:
    """What a server said to a session, up to an end or a last marker.

    Attributes:
        events: What it said, the errors left out.
        errors: The messages of its errors.
        code: The close code, if there was one.
    """

    events: list[Event] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    code: int | None = None


def join(port: int, *, key: str = KEY, receive_buffer_bytes: int | None = None) -> RawWebSocket:
    """A session that has a lane.

    Args:
        port: The server's.
        key: Whose it is.
        receive_buffer_bytes: See `raw_websocket.dial`.
    """
    session = raw_websocket.connect(
        port, DEFAULT_PATH, [("kyutai-api-key", key)], receive_buffer_bytes=receive_buffer_bytes
    )
    try:
        first = next_event(session)
        assert first == Ready(), first
    except BaseException:
        session.socket.close()
        raise
    return session


def next_event(session: RawWebSocket) -> Event | None:
    """The next that the server says, None when it ended the connection instead."""
    message = session.next_message()
    return None if message is None else protocol.decode(message)


def encode(kind: str, **fields: object) -> bytes:
    """A message of any type with any fields; numbers with a point travel as 64-bit floats."""
    return bytes(msgpack.packb({"type": kind, **fields}))


def finish(session: RawWebSocket) -> list[Event]:
    """Asks for a last marker and gives everything up to it; the session must live that long."""
    end = outcome(session)
    assert end.events[-1:] == [Marker(LAST_MARKER)], end
    return end.events


def outcome(session: RawWebSocket) -> Outcome:
    """Asks for a last marker; everything up to it, or to the end if the server ends before."""
    # One that has ended the session already may not take this; what it said is there to be read.
    with contextlib.suppress(OSError):
        session.send_message(protocol.encode_marker(LAST_MARKER))
        session.send_message(protocol.encode_audio(TAIL))
    return ending(session)


def ending(session: RawWebSocket) -> Outcome:
    """Everything up to the last marker or the end, whatever comes first."""
    end = Outcome()
    while (event := next_event(session)) is not None:
        if isinstance(event, Failure):
            end.errors.append(event.message)
        else:
            end.events.append(event)
        if event == Marker(LAST_MARKER):
            break
    end.code = session.code
    return end


def assert_explained(end: Outcome, *codes: int) -> None:
    """The session was told once what was wrong, and closed with one of the codes."""
    assert len(end.errors) == 1, end
    assert end.errors[0].strip(), end
    assert end.code in codes, end


def post(port: int, *parts: bytes, **fields: str) -> tuple[int, dict[str, str]]:
    """The head of the answer to a POST whose body comes in these parts, or not at all."""
    headers = [(name.replace("_", "-"), value) for name, value in fields.items()]
    with raw_websocket.dial(port) as client:
        head = raw_websocket.post_request(port, [*AUTHORIZED, *headers])
        with contextlib.suppress(OSError):
            for part in (head, *parts):
                client.socket.sendall(part)
        return client.read_head()
