"""Many short sessions of every kind, several at a time, and readings of the server between them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import msgpack
import numpy as np
import pytest
import soundfile
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from moshi_ctl.addresses import DEFAULT_PATH
from moshi_ctl.protocol import FRAME_SAMPLES, SAMPLE_RATE_HZ, encode_audio, encode_marker
from support import speech
from support.growth import Reading

KEY_HEADER = "kyutai-api-key"
SESSION_TIMEOUT_S = 60.0
# More than the model's delay, which a marker waits for.
TAIL_FRAMES = 12
SPEECH_S = 0.4


class NoLaneError(Exception):
    """The server is full: the lane of the session before is not free yet."""


@dataclass(frozen=True)
class Target:
    """A server, ours or another of the same protocol.

    Attributes:
        pid: Its process.
        port: Where it listens on loopback.
        key: A key that it takes.
    """

    pid: int
    port: int
    key: str

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}{DEFAULT_PATH}"


@cache
def _messages(opus: bool) -> tuple[bytes, ...]:
    """What a session sends: speech, a marker and silence until it is answered."""
    spoken = speech.speech(SPEECH_S)
    if opus:
        file = io.BytesIO()
        soundfile.write(file, spoken, SAMPLE_RATE_HZ, format="OGG", subtype="OPUS")
        first = bytes(msgpack.packb({"type": "OggOpus", "data": file.getvalue()}))
    else:
        first = encode_audio(spoken)
    silence = np.zeros(TAIL_FRAMES * FRAME_SAMPLES, dtype=np.float32)
    return first, encode_marker(7), encode_audio(silence)


@cache
def _file() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, speech.speech(SPEECH_S), SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16")
    return file.getvalue()


@contextlib.asynccontextmanager
async def connected(target: Target, key: str) -> AsyncIterator[ClientConnection]:
    async with connect(
        target.url, additional_headers={KEY_HEADER: key}, compression=None, proxy=None
    ) as connection:
        yield connection


async def received(connection: ClientConnection) -> dict[str, object]:
    message: dict[str, object] = msgpack.unpackb(await connection.recv())
    if message == {"type": "Error", "message": "no free channels"}:
        raise NoLaneError
    return message


async def speak(target: Target, *, opus: bool = False) -> None:
    """Speaks, and asks for a marker, which is the last that comes."""
    async with connected(target, target.key) as connection:
        assert (await received(connection))["type"] == "Ready"
        for message in _messages(opus):
            await connection.send(message)
        answers = [await received(connection)]
        while answers[-1]["type"] != "Marker":
            answers.append(await received(connection))
            assert answers[-1]["type"] != "Error", answers[-1]
        assert answers[-1]["id"] == 7
        assert any(answer["type"] == "Step" for answer in answers)


async def speak_opus(target: Target) -> None:
    await speak(target, opus=True)


async def post(target: Target) -> None:
    """Posts a file; its transcript comes back."""
    status, body = await exchange(target, _file())
    if status in (429, 503):
        raise NoLaneError
    assert status == 200, body
    assert isinstance(json.loads(body), list)


async def post_nonsense(target: Target) -> None:
    """Posts what is no audio, and is told so."""
    status, body = await exchange(target, b"no audio" * 1_000)
    if status in (429, 503):
        raise NoLaneError
    assert status == 415, body


async def send_nonsense(target: Target) -> None:
    """Sends what is no message; the server says so and closes."""
    async with connected(target, target.key) as connection:
        assert (await received(connection))["type"] == "Ready"
        await connection.send(b"\xc1" * 100)
        said = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                said.append(await received(connection))
        assert [message["type"] for message in said] == ["Error"]


async def knock(target: Target) -> None:
    """Comes with a wrong key and is not let in."""
    with pytest.raises(InvalidStatus) as refusal:
        async with connected(target, "wrong"):
            pass
    assert refusal.value.response.status_code == 401


async def exchange(target: Target, body: bytes) -> tuple[int, bytes]:
    """Posts a body to the module; the answer's status and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    try:
        head = (
            f"POST {DEFAULT_PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            f"{KEY_HEADER}: {target.key}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        answer = await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    lines, _, content = answer.partition(b"\r\n\r\n")
    return int(lines.split()[1]), content


Kind = Callable[[Target], Awaitable[None]]

KINDS: tuple[Kind, ...] = (speak, speak_opus, post, speak, send_nonsense, post_nonsense, knock)
"""What a crowd does, in turns."""


@dataclass
class Crowd:
    """Clients that come one after the other, some at the same time.

    Attributes:
        target: The server.
        at_once: How many sessions there are at a time.
        kinds: What they do, in turns.
        done: How many did what.
        waits: How often one had to come again because the server was full.
    """

    target: Target
    at_once: int
    kinds: Sequence[Kind] = KINDS
    done: Counter[str] = field(default_factory=Counter)
    waits: int = 0

    def run(self, sessions: int, readings: int) -> list[Reading]:
        """Runs so many sessions; the server is read so many times while there is none."""
        return asyncio.run(self._run(sessions, readings))

    async def _run(self, sessions: int, readings: int) -> list[Reading]:
        taken = [Reading.of(self.target.pid, 0)]
        every = max(1, sessions // readings)
        for begin in range(0, sessions, every):
            end = min(begin + every, sessions)
            numbers = iter(range(begin, end))
            await asyncio.gather(*(self._one_after_the_other(numbers) for _ in range(self.at_once)))
            taken.append(Reading.of(self.target.pid, end))
        return taken

    async def _one_after_the_other(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            kind = self.kinds[number % len(self.kinds)]
            while not await asyncio.wait_for(self._got_a_lane(kind), SESSION_TIMEOUT_S):
                self.waits += 1
                await asyncio.sleep(0.01)
            self.done[kind.__name__] += 1

    async def _got_a_lane(self, kind: Kind) -> bool:
        try:
            await kind(self.target)
        except NoLaneError:
            return False
        return True
