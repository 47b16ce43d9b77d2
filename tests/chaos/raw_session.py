"""Sessions over raw WebSockets, and what they are told at their end."""

from __future__ import annotations

from dataclasses import dataclass

import msgpack

from chaos import raw_websocket
from chaos.clean_streams import TAIL
from chaos.raw_websocket import Headers, RawWebSocket
from moshi_ctl import protocol
from moshi_ctl.client import DEFAULT_PATH
from moshi_ctl.protocol import Event, Failure, Marker, Ready
from support.worker import KEY

AUTHORIZED: Headers = (("kyutai-api-key", KEY),)

INVALID_DATA = 1007
PROTOCOL_ERROR = 1002
POLICY = 1008
TOO_BIG = 1009
UNSUPPORTED = 1003
TRY_AGAIN_LATER = 1013

LAST_MARKER = 4_242


@dataclass(frozen=True)
class Ending:
    """How a server ended a session.

    Attributes:
        events: What it said, the errors left out.
        errors: The messages of its errors.
        code: The close code, if there was one.
    """

    events: tuple[Event, ...]
    errors: tuple[str, ...]
    code: int | None


def join(port: int, *, receive_buffer_bytes: int | None = None) -> RawWebSocket:
    """A session that has a lane.

    Args:
        port: The server's.
        receive_buffer_bytes: See `raw_websocket.dial`.
    """
    session = raw_websocket.connect(
        port, DEFAULT_PATH, AUTHORIZED, receive_buffer_bytes=receive_buffer_bytes
    )
    try:
        first = next_event(session)
        assert first == Ready(), first
    except BaseException:
        session.socket.close()
        raise
    return session


def next_event(session: RawWebSocket) -> Event:
    """The next that the server says."""
    event = protocol.decode(session.next_message())
    assert event is not None
    return event


def encode(kind: str, **fields: object) -> bytes:
    """A message of any type with any fields; numbers with a point travel as 64-bit floats."""
    return bytes(msgpack.packb({"type": kind, **fields}))


def finish(session: RawWebSocket) -> list[Event]:
    """Asks for a last marker; everything up to it."""
    session.send_message(protocol.encode_marker(LAST_MARKER))
    session.send_message(protocol.encode_audio(TAIL))
    events: list[Event] = []
    while not events or events[-1] != Marker(LAST_MARKER):
        events.append(next_event(session))
    return events


def ending(session: RawWebSocket) -> Ending:
    """How the server ends the session, or ended it."""
    farewell = session.until_closed()
    events = [protocol.decode(message) for message in farewell.messages]
    return Ending(
        tuple(event for event in events if event is not None and not isinstance(event, Failure)),
        tuple(event.message for event in events if isinstance(event, Failure)),
        farewell.code,
    )


def assert_explained(end: Ending, *codes: int) -> None:
    """The session was told once what was wrong, and closed with one of the codes."""
    assert len(end.errors) == 1, end
    assert end.errors[0].strip(), end
    assert end.code in codes, end
