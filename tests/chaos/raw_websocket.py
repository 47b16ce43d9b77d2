"""WebSocket by hand (RFC 6455) over a plain socket: what no library sends can be sent."""

from __future__ import annotations

import base64
import contextlib
import enum
import hashlib
import socket
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from moshi_ctl.addresses import DEFAULT_PATH

TIMEOUT_S = 30.0

SEGMENT_BYTES = 1_400

# RFC 6455, section 1.3.
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_NONCE = base64.b64encode(bytes(16)).decode()
_LINGER_0 = struct.pack("ii", 1, 0)

Headers = Sequence[tuple[str, str | bytes]]


class Opcode(enum.IntEnum):
    """What a frame is; others are reserved."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


@dataclass(frozen=True)
class Frame:
    """One frame, right or wrong.

    Attributes:
        payload: What it carries, unmasked.
        opcode: What it is, 0 to 15.
        fin: Whether it is the last of its message.
        rsv: The reserved bits, 0 to 7, RSV1 first.
        mask: Four bytes; None where the frame is not masked.
        claimed_bytes: What the header says of the payload's length where that is not so.
        length_bits: Bits of the length: 7, 16 or 64; None for as few as hold it.
    """

    payload: bytes = b""
    opcode: int = Opcode.BINARY
    fin: bool = True
    rsv: int = 0
    mask: bytes | None = b"\x12\x34\x56\x78"
    claimed_bytes: int | None = None
    length_bits: int | None = None

    def encode(self) -> bytes:
        """The frame as it goes over the wire."""
        length = len(self.payload) if self.claimed_bytes is None else self.claimed_bytes
        bits = self.length_bits or (7 if length < 126 else 16 if length < 1 << 16 else 64)
        first = self.fin << 7 | self.rsv << 4 | self.opcode
        masked = (self.mask is not None) << 7
        if bits == 7:
            head = struct.pack("!BB", first, masked | length)
        elif bits == 16:
            head = struct.pack("!BBH", first, masked | 126, length)
        else:
            head = struct.pack("!BBQ", first, masked | 127, length)
        if self.mask is None:
            return head + self.payload
        return head + self.mask + apply_mask(self.payload, self.mask)


def apply_mask(payload: bytes, mask: bytes) -> bytes:
    """The payload masked, or unmasked again."""
    pad = (mask * (len(payload) // 4 + 1))[: len(payload)]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")
    return masked.to_bytes(len(payload), "big")


def fragments(payload: bytes, sizes: Sequence[int], opcode: int = Opcode.BINARY) -> list[Frame]:
    """A message in frames of these sizes; the rest goes into a last one."""
    frames, at = [], 0
    for size in sizes:
        frames.append(Frame(payload[at : at + size], opcode, fin=False))
        at, opcode = at + size, Opcode.CONTINUATION
    return [*frames, Frame(payload[at:], opcode)]


def close_frame(code: int, reason: str | bytes = b"") -> Frame:
    """A close frame."""
    reason = reason.encode() if isinstance(reason, str) else reason
    return Frame(struct.pack("!H", code) + reason, Opcode.CLOSE)


class RefusedError(Exception):
    """The server answered the handshake with something else than an upgrade.

    Attributes:
        status: The HTTP status.
        headers: By their names in lower case.
        body: What there was of it.
    """

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(f"HTTP {status}: {body[:200]!r}")
        self.status = status
        self.headers = headers
        self.body = body


class ConnectionEndedError(Exception):
    """The server ended the connection, with a FIN or a RST, and no frame is left."""


def upgrade_request(
    port: int,
    path: str = DEFAULT_PATH,
    headers: Headers = (),
    *,
    without: Collection[str] = (),
) -> bytes:
    """The bytes of a handshake.

    Args:
        port: What the header `Host` says.
        path: With the query.
        headers: Sent in addition, whether or not there are others of the same name.
        without: Headers of a proper handshake that are left out.
    """
    proper = [
        ("Host", f"127.0.0.1:{port}"),
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", _NONCE),
    ]
    return _head("GET", path, [*(pair for pair in proper if pair[0] not in without), *headers])


def post_request(port: int, headers: Headers = (), path: str = DEFAULT_PATH) -> bytes:
    """The bytes of a POST up to its body; the arguments are those of `upgrade_request`."""
    return _head("POST", path, [("Host", f"127.0.0.1:{port}"), *headers])


def _head(method: str, path: str, headers: Headers) -> bytes:
    lines = [f"{method} {path} HTTP/1.1".encode()]
    for name, value in headers:
        lines.append(name.encode() + b": " + (value.encode() if isinstance(value, str) else value))
    return b"\r\n".join([*lines, b"", b""])


class RawWebSocket:
    """A client's end of a connection; use it as a context manager.

    Attributes:
        socket: The plain socket.
        closed: Whether the server sent a close frame.
        code: The code in it; None where there was none.
        reason: The reason in it.
    """

    def __init__(self, plain: socket.socket) -> None:
        """Takes over a connected socket."""
        self.socket = plain
        self.closed = False
        self.code: int | None = None
        self.reason = ""
        self._received = bytearray()

    def __enter__(self) -> RawWebSocket:
        """Gives itself."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the socket, without the handshake that WebSocket has for that."""
        self.socket.close()

    def finish_handshake(self) -> None:
        """Reads the answer to a handshake.

        Raises:
            RefusedError: When it is no upgrade.
            ConnectionEndedError: When there is no answer.
        """
        status, headers = self.read_head()
        if status != 101:
            raise RefusedError(status, headers, self._rest(int(headers.get("content-length", 0))))
        accept = base64.b64encode(hashlib.sha1(_NONCE.encode() + _GUID).digest())  # noqa: S324
        assert headers["sec-websocket-accept"] == accept.decode()

    def read_head(self) -> tuple[int, dict[str, str]]:
        """The status and the headers of an HTTP answer.

        Raises:
            ConnectionEndedError: When it does not come.
        """
        while b"\r\n\r\n" not in self._received:
            self._receive_more()
        head, _, rest = bytes(self._received).partition(b"\r\n\r\n")
        self._received = bytearray(rest)
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.split(":", 1) for line in lines)
        return int(first.split()[1]), {name.lower(): value.strip() for name, value in pairs}

    def read_exactly(self, length: int) -> bytes:
        """The next bytes, as they come.

        Raises:
            ConnectionEndedError: When there are not so many.
        """
        taken = self._peek(length)
        del self._received[:length]
        return taken

    def send(self, *frames: Frame) -> None:
        """Sends frames."""
        self.socket.sendall(b"".join(frame.encode() for frame in frames))

    def send_message(self, payload: bytes) -> None:
        """Sends a whole binary message."""
        self.send(Frame(payload))

    def receive(self) -> Frame:
        """The next frame.

        Raises:
            ConnectionEndedError: When there is none any more.
            TimeoutError: When none comes; what came of it is kept.
        """
        first, second = self._peek(2)
        length, head = second & 0x7F, 2
        if length >= 126:
            head = 4 if length == 126 else 10
            length = int.from_bytes(self._peek(head)[2:], "big")
        assert not second & 0x80, "a server must not mask"
        payload = self._peek(head + length)[head:]
        del self._received[: head + length]
        return Frame(payload, first & 0x0F, bool(first & 0x80), first >> 4 & 7, mask=None)

    def next_message(self) -> bytes | None:
        """The payload of the next whole message, None at the connection's end.

        Pings are answered, and a close frame too; what it says is kept.

        Raises:
            TimeoutError: When neither comes.
        """
        payload = b""
        while True:
            try:
                frame = self.receive()
            except ConnectionEndedError:
                return None
            if frame.opcode == Opcode.CLOSE:
                self.closed = True
                if frame.payload:
                    self.code = int.from_bytes(frame.payload[:2], "big")
                    self.reason = frame.payload[2:].decode()
                self._answer(Frame(frame.payload[:2], Opcode.CLOSE))
            elif frame.opcode == Opcode.PING:
                self._answer(Frame(frame.payload, Opcode.PONG))
            elif frame.opcode != Opcode.PONG:
                payload += frame.payload
                if frame.fin:
                    return payload

    def until_closed(self) -> list[bytes]:
        """The payloads of all messages up to the connection's end; see `next_message`."""
        messages = []
        while (message := self.next_message()) is not None:
            messages.append(message)
        return messages

    def fin(self) -> None:
        """Says at the level of TCP that nothing more will be sent; reading goes on."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Ends the connection with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
        self.socket.close()

    def _answer(self, frame: Frame) -> None:
        # Whoever has gone needs no answer; what was said before is still to be read.
        with contextlib.suppress(OSError):
            self.send(frame)

    def _peek(self, length: int) -> bytes:
        while len(self._received) < length:
            self._receive_more()
        return bytes(self._received[:length])

    def _rest(self, length: int) -> bytes:
        try:
            return self._peek(length)
        except ConnectionEndedError:
            return bytes(self._received)

    def _receive_more(self) -> None:
        try:
            piece = self.socket.recv(65_536)
        except ConnectionError as error:
            raise ConnectionEndedError(str(error)) from error
        if not piece:
            raise ConnectionEndedError("no more bytes")
        self._received += piece


def dial(
    port: int, *, address: str = "127.0.0.1", receive_buffer_bytes: int | None = None
) -> RawWebSocket:
    """A TCP connection on loopback, before the handshake.

    Args:
        port: Where to.
        address: Where from; all of 127.0.0.0/8 is loopback.
        receive_buffer_bytes: What the kernel holds for us unread, about 2 KiB at least.
    """
    plain = socket.socket()
    try:
        plain.settimeout(TIMEOUT_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer_bytes is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
            # As on a network; loopback's would fill such a buffer at once.
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES)
        plain.bind((address, 0))
        plain.connect(("127.0.0.1", port))
    except BaseException:
        plain.close()
        raise
    return RawWebSocket(plain)


def connect(
    port: int,
    path: str = DEFAULT_PATH,
    headers: Headers = (),
    *,
    without: Collection[str] = (),
    receive_buffer_bytes: int | None = None,
) -> RawWebSocket:
    """A WebSocket; the arguments are those of `dial` and `upgrade_request`.

    Raises:
        RefusedError: When the server does not upgrade.
        ConnectionEndedError: When it ends the connection.
    """
    ends = dial(port, receive_buffer_bytes=receive_buffer_bytes)
    try:
        ends.socket.sendall(upgrade_request(port, path, headers, without=without))
        ends.finish_handshake()
    except BaseException:
        ends.socket.close()
        raise
    return ends
