"""Clients that are gone at any stage of what they wanted, in every way a connection can end.

As a program, `python -m support.vanishing PORT KEY COUNT SEED`: so many clients that stay where
they are until somebody kills the process.
"""

from __future__ import annotations

import io
import random
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
from websockets.frames import Frame, Opcode

from moshi_ctl.addresses import DEFAULT_PATH
from moshi_ctl.protocol import FRAME_SAMPLES, SAMPLE_RATE_HZ, encode_audio, encode_marker
from support.crowd import KEY_HEADER

TIMEOUT_S = 30.0

_TESTS = Path(__file__).parents[1]
_FILE_S = 4


def _head(key: str, method: str, *lines: str) -> bytes:
    head = [f"{method} {DEFAULT_PATH} HTTP/1.1", "Host: 127.0.0.1", f"{KEY_HEADER}: {key}", *lines]
    return "\r\n".join([*head, "", ""]).encode()


@cache
def _file() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(_FILE_S * SAMPLE_RATE_HZ), SAMPLE_RATE_HZ, format="WAV")
    return file.getvalue()


def _upgrade(key: str) -> bytes:
    return _head(
        key,
        "GET",
        *("Upgrade: websocket", "Connection: Upgrade"),
        *("Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
    )


def binary_frame(message: bytes) -> bytes:
    """A message as it goes over the wire."""
    return Frame(Opcode.BINARY, message).serialize(mask=True)


def _audio(frames: float) -> bytes:
    return encode_audio(np.full(round(frames * FRAME_SAMPLES), 0.1, dtype=np.float32))


class Client:
    """A connection that somebody has begun.

    Args:
        port: Where to, on loopback.
        key: A key that is taken there.
        luck: Decides how far within a stage it comes.
    """

    def __init__(self, port: int, key: str, luck: random.Random | None = None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self._luck = luck or random.Random(0)
        self._key = key
        self._upgraded = False

    def go_to(self, stage: str) -> None:
        """Does what comes before it vanishes."""
        getattr(self, f"_{stage}")()

    def vanish(self, way: str) -> None:
        """Ends the connection.

        Args:
            way: "close" in good order, where there is a WebSocket; "fin"; "half", which closes
                one direction first; or "rst".
        """
        with self.socket:
            if way == "close" and self._upgraded:
                self._send(Frame(Opcode.CLOSE, struct.pack(">H", 1000)).serialize(mask=True))
            elif way == "half":
                self.socket.shutdown(socket.SHUT_WR)
            elif way == "rst":
                linger = struct.pack("ii", 1, 0)
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def _send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def _send_a_part_of(self, data: bytes) -> None:
        self._send(data[: self._luck.randrange(1, len(data))])

    def _read_until(self, end: bytes) -> None:
        read = b""
        while end not in read:
            block = self.socket.recv(4096)
            assert block, f"closed after {read!r}"
            read += block

    def _silent(self) -> None:
        pass

    def _in_its_request(self) -> None:
        self._send_a_part_of(_upgrade(self._key))

    def _before_the_answer(self) -> None:
        self._send(_upgrade(self._key))

    def _refused(self) -> None:
        self._send(_upgrade(f"not {self._key}"))
        self._read_until(b"HTTP/1.1 401")

    def _connected(self) -> None:
        self._send(_upgrade(self._key))
        self._read_until(b"HTTP/1.1 101")
        self._upgraded = True

    def _ready(self) -> None:
        """It has a lane, or was told that there is none."""
        self._send(_upgrade(self._key))
        self._read_until(b"type")
        self._upgraded = True

    def _in_a_message(self) -> None:
        self._connected()
        self._send_a_part_of(binary_frame(_audio(2)))

    def _between_frames(self) -> None:
        """Of one message, and with another frame between them."""
        self._connected()
        first = Frame(Opcode.BINARY, _audio(1), fin=False)
        for frame in (first, Frame(Opcode.CONT, b"", fin=False), Frame(Opcode.PING, b"")):
            self._send(frame.serialize(mask=True))

    def _speaking(self) -> None:
        self._connected()
        self._send(binary_frame(_audio(self._luck.uniform(0.1, 30))))

    def _waiting_for_markers(self) -> None:
        self._connected()
        self._send(binary_frame(_audio(self._luck.uniform(0.1, 4))))
        for number in range(self._luck.randrange(1, 20)):
            self._send(binary_frame(encode_marker(number)))

    def _in_a_body(self) -> None:
        self._post(_file()[: self._luck.randrange(len(_file()))])

    def _before_the_transcript(self) -> None:
        self._post(_file())

    def _post(self, body: bytes) -> None:
        self._send(_head(self._key, "POST", f"Content-Length: {len(_file())}") + body)


STAGES = (
    *("silent", "in_its_request", "before_the_answer", "refused", "connected", "ready"),
    *("in_a_message", "between_frames", "speaking", "waiting_for_markers"),
    *("in_a_body", "before_the_transcript"),
)
WAYS = ("close", "fin", "half", "rst")


def come_and_go(port: int, key: str, count: int, luck: random.Random) -> None:
    """So many clients, one after the other, each at a stage and in a way that `luck` chooses."""
    for _ in range(count):
        stage, way = luck.choice(STAGES), luck.choice(WAYS)
        client = Client(port, key, luck)
        try:
            client.go_to(stage)
            client.vanish(way)
        except OSError:
            # A server that refuses without reading a body may close first.
            client.socket.close()


def killed(port: int, key: str, count: int, seed: int) -> None:
    """So many clients at once, of a process that is killed."""
    with subprocess.Popen(
        [sys.executable, "-m", "support.vanishing", *map(str, (port, key, count, seed))],
        cwd=_TESTS,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "there\n"
        finally:
            process.kill()


def _stay(arguments: Sequence[str]) -> None:
    port, key, count, seed = int(arguments[0]), arguments[1], int(arguments[2]), int(arguments[3])
    luck = random.Random(seed)
    clients = [Client(port, key, luck) for _ in range(count)]
    for client in clients:
        client.go_to(luck.choice(STAGES))
    print("there", flush=True)
    signal.pause()


if __name__ == "__main__":
    _stay(sys.argv[1:])
