"""The drills of `reliability.py` in which something fails: model, process, configuration, start."""

from __future__ import annotations

import asyncio
import io
import math
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

import msgpack
import numpy as np
import soundfile
from drill_servers import KEY, Server, Servers, until
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from moshi_ctl.protocol import (
    FRAME_S,
    FRAME_SAMPLES,
    SAMPLE_RATE_HZ,
    encode_audio,
    encode_marker,
)
from support import speech
from support.crowd import connected, received

Measured = dict[str, float | str | bool]
"""What a drill found out, by what it is; times in milliseconds, infinite for what never came."""

LIMIT_S = 10.0
FAULT_STEP = 25
SPEAKS_S = 3.0


@dataclass
class Ending:
    """How a client's session ended.

    Attributes:
        messages: All that came after the fault, decoded.
        code: The close code; 1006 for none, 0 when it did not end.
        ended_s: When it ended.
        error_s: When an `Error` came.
    """

    messages: list[dict[str, object]] = field(default_factory=list)
    code: int = 0
    ended_s: float = math.inf
    error_s: float = math.inf

    def count(self, kind: str) -> int:
        """How many messages of a type came."""
        return sum(message["type"] == kind for message in self.messages)

    async def follow(self, connection: ClientConnection, limit_s: float) -> None:
        """Reads on until the session ends, or for so long."""
        with suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(self._read(connection), limit_s)

    async def _read(self, connection: ClientConnection) -> None:
        try:
            while True:
                self.messages.append(msgpack.unpackb(await connection.recv()))
                if self.messages[-1]["type"] == "Error":
                    self.error_s = min(self.error_s, time.monotonic())
        except ConnectionClosed as closed:
            self.code = closed.rcvd.code if closed.rcvd else 1006
            self.ended_s = time.monotonic()


class Aftermath(threading.Thread):
    """Watches readiness and process until the process is gone, or for so long."""

    def __init__(self, server: Server, limit_s: float = LIMIT_S) -> None:
        super().__init__(daemon=True)
        self.not_ready_s = self.exit_s = math.inf
        self._server, self._deadline_s = server, time.monotonic() + limit_s
        self.start()

    def run(self) -> None:
        """Until then."""
        while time.monotonic() < self._deadline_s:
            if self.not_ready_s == math.inf and not self._server.is_ready():
                self.not_ready_s = time.monotonic()
            if self._server.ended():
                self.exit_s = time.monotonic()
                return
            time.sleep(0.005)

    def since(self, fault_s: float) -> Measured:
        """What it saw, in milliseconds after the fault."""
        self.join()
        return {
            "readiness off, ms": 1e3 * (self.not_ready_s - fault_s),
            "exit, ms": 1e3 * (self.exit_s - fault_s),
            "exit code": exit_code(self._server),
        }


def exit_code(server: Server) -> str:
    """How its process ended, if it did."""
    code = server.process.poll()
    return "it runs" if code is None else str(code)


async def speak(connection: ClientConnection, seconds: float, sent_s: list[float]) -> None:
    """Speech in real time; notes when each frame was sent."""
    frames = np.resize(speech.speech(), (round(seconds / FRAME_S), FRAME_SAMPLES))
    start_s = time.monotonic()
    for number, frame in enumerate(frames):
        await asyncio.sleep(max(0.0, start_s + number * FRAME_S - time.monotonic()))
        sent_s.append(time.monotonic())
        await connection.send(encode_audio(frame))


def opus_file(seconds: float) -> bytes:
    """Speech as Ogg Opus."""
    file = io.BytesIO()
    samples = speech.speech(seconds)
    soundfile.write(file, samples, SAMPLE_RATE_HZ, format="OGG", subtype="OPUS")
    return file.getvalue()


async def serves(server: Server) -> bool:
    """Whether a new client gets a step for its audio."""

    async def client() -> bool:
        async with connected(server.target, KEY) as connection:
            if (await received(connection))["type"] != "Ready":
                return False
            await connection.send(encode_audio(np.zeros(4 * FRAME_SAMPLES, dtype=np.float32)))
            return (await received(connection))["type"] in ("Step", "Word")

    try:
        return await asyncio.wait_for(client(), LIMIT_S)
    except Exception:  # noqa: BLE001 - however it fails, it does not serve.
        return False


def sigterm(servers: Servers) -> Measured:
    """A SIGTERM in mid-speech, just after a marker."""

    async def drill(server: Server) -> Measured:
        async with connected(server.target, KEY) as connection:
            await received(connection)
            before, after = Ending(), Ending()
            listening = asyncio.create_task(before.follow(connection, SPEAKS_S))
            await speak(connection, SPEAKS_S, [])
            await listening
            await connection.send(encode_marker(1))
            watch, fault_s = Aftermath(server, 15), time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            await after.follow(connection, 15)
        return {
            "survived": after.count("Marker") == 1,
            "client's end, ms": 1e3 * (after.ended_s - fault_s),
            "close code": str(after.code or "none"),
            "marker answered": bool(after.count("Marker")),
            "words after the signal": float(after.count("Word")),
            **await asyncio.to_thread(watch.since, fault_s),
        }

    with servers.running() as server:
        return asyncio.run(drill(server))


def _beside_a_stream(server: Server, fault: bytes | None) -> Measured:
    """Somebody streams; a message comes from another, or the fault comes by itself."""

    async def drill() -> Measured:
        async with connected(server.target, KEY) as connection:
            await received(connection)
            ending, beside = Ending(), dict[str, bool]()
            watch = Aftermath(server)
            listening = asyncio.create_task(ending.follow(connection, LIMIT_S))
            sent_s: list[float] = []
            speaking = asyncio.create_task(speak(connection, LIMIT_S, sent_s))
            if fault is not None:
                async with connected(server.target, KEY) as other:
                    await received(other)
                    await asyncio.sleep(1.0)
                    message_s, before = time.monotonic(), ending.count("Step")
                    await other.send(fault)
                    await asyncio.sleep(3.0)
                    beside["stream beside goes on"] = ending.count("Step") > before + 20
            await listening
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)
        fault_s = sent_s[FAULT_STEP - 1] if fault is None else message_s
        if not server.ended() and await serves(server):
            return {"survived": True, **beside}
        return {
            "survived": False,
            "client's error, ms": 1e3 * (ending.error_s - fault_s),
            "client's end, ms": 1e3 * (ending.ended_s - fault_s),
            "close code": str(ending.code or "none"),
            **beside,
            **await asyncio.to_thread(watch.since, fault_s),
        }

    return asyncio.run(drill())


def long_opus(servers: Servers) -> Measured:
    """Two seconds of Ogg Opus in one message, beside a stream."""
    with servers.running() as server:
        message = msgpack.packb({"type": "OggOpus", "data": list(opus_file(2.0))})
        return _beside_a_stream(server, message)


def dead_model(servers: Servers) -> Measured | None:
    """The model's thread panics in a step, by a fault that is built in."""
    if not servers.can_fail_on_demand():
        return None
    with servers.running(f"panic@{FAULT_STEP}") as server:
        return _beside_a_stream(server, None)


def hanging_step(servers: Servers) -> Measured | None:
    """A step never ends, by a fault that is built in."""
    if not servers.can_fail_on_demand():
        return None
    with servers.running(f"hang@{FAULT_STEP}") as server:
        return _beside_a_stream(server, None)


def port_before_warmup(servers: Servers) -> Measured:
    """A client that comes as soon as the port opens."""

    async def first_client(server: Server) -> float:
        begun_s = time.monotonic()
        async with connected(server.target, KEY) as connection:
            await received(connection)
        return time.monotonic() - begun_s

    with servers.starting() as server:
        open_s = until(server.listens, 60, server.started_s)
        says_ready = server.is_ready()
        ready_s = asyncio.run(first_client(server))
        return {
            "survived": ready_s < 0.5,
            "port open after, ms": 1e3 * open_s,
            "says ready then": says_ready,
            "first client ready after, ms": 1e3 * ready_s,
        }


def unknown_key(servers: Servers) -> Measured:
    """A configuration that says `batch_sise`."""
    with servers.starting(change=("temperature = ", "batch_sise = 8\ntemperature = ")) as server:
        until(lambda: server.ended() or server.listens(), 60)
        refused = server.ended()
        return {
            "survived": refused,
            "refused, ms": 1e3 * (time.monotonic() - server.started_s) if refused else math.inf,
            "exit code": exit_code(server),
        }


def malformed(servers: Servers) -> Measured:
    """A message that is no MessagePack."""

    async def drill(server: Server) -> Measured:
        ending = Ending()
        async with connected(server.target, KEY) as connection:
            await received(connection)
            sent_s = time.monotonic()
            await connection.send(b"\xc1" * 64)
            await ending.follow(connection, LIMIT_S)
        return {
            "survived": await serves(server),
            "client's error, ms": 1e3 * (ending.error_s - sent_s),
            "client's end, ms": 1e3 * (ending.ended_s - sent_s),
            "close code": str(ending.code or "none"),
        }

    with servers.running() as server:
        return asyncio.run(drill(server))


def huge_header(servers: Servers) -> Measured:
    """A request with a header of one MiB."""

    async def drill(server: Server) -> Measured:
        before, begun_s = server.resident_bytes(), time.monotonic()
        try:
            async with connected(server.target, "x" * 2**20):
                said = "101"
        except InvalidStatus as refusal:
            said = str(refusal.response.status_code)
        except Exception:  # noqa: BLE001 - there are many ways to be cut off.
            said = "connection closed"
        return {
            "survived": await serves(server),
            "answer": said,
            "answer, ms": 1e3 * (time.monotonic() - begun_s),
            "memory, MB more": (server.resident_bytes() - before) / 1e6,
        }

    with servers.running() as server:
        return asyncio.run(drill(server))
