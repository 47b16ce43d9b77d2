"""The drills of `reliability.py` in which others ask for too much, or for something odd."""

from __future__ import annotations

import asyncio
import functools
import io
import math
import random
import socket
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import numpy as np
import psutil
import soundfile
from drill_servers import KEY, LANES, Server, Servers, until
from drills import LIMIT_S, Ending, Measured, serves
from numpy.typing import NDArray
from websockets.exceptions import WebSocketException

from moshi_ctl.protocol import (
    FRAME_SAMPLES,
    SAMPLE_RATE_HZ,
    Samples,
    encode_audio,
)
from support import speech, vanishing
from support.crowd import Crowd, NoLaneError, connected, exchange, received, speak
from support.growth import Growth
from support.paced import Paced

FLOOD_S = 15.0
QUIET_S = 5.0
CONNECTS_PER_S = 50
LATE_CLIENTS = 20
SLOW_HANDSHAKES = 200
VANISHED = 200
POST_LIMIT_S = 15.0
FREE_LIMIT_S = 60.0
HOUR_S = 3_600
COMPARED_S = 2.4


def percentile(values: list[float], percent: float) -> float:
    """In milliseconds of values in seconds; infinite when there are none."""
    return float(1e3 * np.percentile(values, percent)) if values else math.inf


def answers(streams: list[Paced], begin_s: float, end_s: float) -> list[float]:
    """How long each step took to come back that came within that time, in seconds."""
    return [
        answer_s
        for stream in streams
        for at_s, answer_s in zip(stream.times_s, stream.answers_s, strict=True)
        if begin_s <= at_s < end_s
    ]


async def paced_beside(
    server: Server, streams: int, seconds: float, others: Callable[[], Awaitable[None]]
) -> list[Paced]:
    """Streams in real time; the others begin once the streams have gone on for a while."""
    paced = [Paced() for _ in range(streams)]
    url = server.target.url
    running = [asyncio.create_task(stream.speak(url, KEY, seconds)) for stream in paced]
    await asyncio.sleep(QUIET_S)
    await others()
    await asyncio.gather(*running, return_exceptions=True)
    return paced


async def _refusal(server: Server, latencies_s: list[float], failed: list[str]) -> None:
    begun_s = time.monotonic()
    try:
        async with connected(server.target, KEY) as connection:
            message = await asyncio.wait_for(received(connection), LIMIT_S)
            if message["type"] == "Error":
                # Not full but overloaded, and said so.
                raise NoLaneError
            failed.append("was let in")
    except NoLaneError:
        latencies_s.append(time.monotonic() - begun_s)
    except (OSError, WebSocketException, asyncio.TimeoutError) as error:
        failed.append(type(error).__name__)


def full_server(servers: Servers) -> Measured:
    """All lanes stream; 20 more come at once, then 50 a second."""
    latencies_s: list[float] = []
    failed: list[str] = []

    async def flood(server: Server) -> None:
        tasks = [
            asyncio.create_task(_refusal(server, latencies_s, failed)) for _ in range(LATE_CLIENTS)
        ]
        end_s = time.monotonic() + FLOOD_S
        while time.monotonic() < end_s:
            tasks.append(asyncio.create_task(_refusal(server, latencies_s, failed)))
            await asyncio.sleep(1 / CONNECTS_PER_S)
        await asyncio.gather(*tasks)

    with servers.running() as server:
        seconds = QUIET_S + FLOOD_S
        paced = asyncio.run(paced_beside(server, LANES, seconds, functools.partial(flood, server)))
    before = answers(paced, 1.0, QUIET_S)
    during = answers(paced, QUIET_S, seconds)
    return {
        "survived": not failed and all(stream.taken_frames for stream in paced),
        "refusals": float(len(latencies_s)),
        "not refused in-band": float(len(failed)),
        "refusal p50, ms": percentile(latencies_s, 50),
        "refusal p99, ms": percentile(latencies_s, 99),
        "step's answer p50 before, ms": percentile(before, 50),
        "step's answer p50 meanwhile, ms": percentile(during, 50),
        "step's answer p99 before, ms": percentile(before, 99),
        "step's answer p99 meanwhile, ms": percentile(during, 99),
    }


def post_to_full(servers: Servers) -> Measured:
    """All lanes are taken; somebody posts a file."""
    file = io.BytesIO()
    soundfile.write(file, speech.speech(2.0), SAMPLE_RATE_HZ, format="WAV")

    async def drill(server: Server) -> Measured:
        async with AsyncExitStack() as stack:
            for _ in range(LANES):
                connection = await stack.enter_async_context(connected(server.target, KEY))
                await received(connection)
            begun_s = time.monotonic()
            try:
                post = exchange(server.target, file.getvalue())
                status, _ = await asyncio.wait_for(post, POST_LIMIT_S)
            except asyncio.TimeoutError:
                return {"survived": False, "answer": "none", "answer, ms": math.inf}
            answer_ms = 1e3 * (time.monotonic() - begun_s)
            return {
                "survived": status in (429, 503), "answer": str(status), "answer, ms": answer_ms
            }  # fmt: skip

    with servers.running() as server:
        return asyncio.run(drill(server))


Heard = tuple[list[str], NDArray[np.float64]]
"""The words of a session, and its VAD values: step by head."""


async def hear(server: Server, samples: Samples) -> Heard:
    """What a session is told of some audio."""
    words: list[str] = []
    vad: list[list[float]] = []
    async with connected(server.target, KEY) as connection:
        await received(connection)
        await connection.send(encode_audio(samples))
        while len(vad) < len(samples) // FRAME_SAMPLES:
            message = await asyncio.wait_for(received(connection), LIMIT_S)
            if message["type"] == "Word":
                words.append(str(message["text"]))
            elif message["type"] == "Step":
                vad.append(message["prs"])  # type: ignore[arg-type]
    return words, np.array(vad)


def difference(first: Heard, second: Heard) -> Measured:
    """How far two sessions with the same audio are apart."""
    same = first[0] == second[0]
    return {"words": "same" if same else "others", "VAD": float(np.abs(first[1] - second[1]).max())}


def changed(who: str, first: Heard, second: Heard) -> Measured:
    """`difference`, with who it is about."""
    return {f"{who}: {what}": value for what, value in difference(first, second).items()}


def compared() -> Samples:
    """What sessions hear that are compared."""
    return speech.speech(COMPARED_S)


async def _alone(servers: Servers) -> Heard:
    with servers.running() as server:
        return await hear(server, compared())


def nan_audio(servers: Servers) -> Measured:
    """A client sends NaN beside a stream, and leaves; somebody else gets its lane."""

    async def drill() -> Measured:
        expected = await _alone(servers)
        with servers.running() as server:
            beside = asyncio.create_task(hear(server, compared()))
            await asyncio.sleep(0.2)
            ending = Ending()
            async with connected(server.target, KEY) as bad:
                await received(bad)
                await bad.send(encode_audio(np.full(12 * FRAME_SAMPLES, np.nan, dtype=np.float32)))
                await ending.follow(bad, 2.0)
            neighbour = await beside
            until(lambda: server.used_lanes() == 0, FREE_LIMIT_S)
            async with connected(server.target, KEY) as waiting:
                await received(waiting)
                after = await hear(server, compared())
        report = {**changed("neighbour", expected, neighbour), **changed("next", expected, after)}
        exact = all(report[f"{who}: VAD"] == 0.0 for who in ("neighbour", "next"))
        return {"survived": exact, "client told": ending.count("Error") > 0, **report}

    return asyncio.run(drill())


def lane_reuse(servers: Servers) -> Measured:
    """A lane that heard noise is like that of a server that has just started."""
    noise = np.random.default_rng(1).uniform(-1, 1, 24 * FRAME_SAMPLES).astype(np.float32)

    async def drill() -> Measured:
        expected = await _alone(servers)
        with servers.running() as server:
            await hear(server, noise)
            until(lambda: server.used_lanes() == 0, FREE_LIMIT_S)
            after = await hear(server, compared())
        report = difference(expected, after)
        return {"survived": report["VAD"] == 0.0, **report}

    return asyncio.run(drill())


def vanished(servers: Servers) -> Measured:
    """200 clients that vanish at random stages, in random ways."""
    luck = random.Random(1)  # noqa: S311 - the same for both servers.
    with servers.running() as server:
        process = psutil.Process(server.process.pid)
        descriptors, begun_s = process.num_fds(), time.monotonic()
        vanishing.come_and_go(server.port, KEY, VANISHED, luck)
        gone_s = time.monotonic()
        free_s = until(lambda: server.used_lanes() == 0, FREE_LIMIT_S)
        served = asyncio.run(serves(server))
        return {
            "survived": served and free_s < math.inf,
            "their time, s": gone_s - begun_s,
            "lanes free after, ms": 1e3 * free_s,
            "descriptors more": float(process.num_fds() - descriptors),
        }


def slow_handshakes(servers: Servers) -> Measured:
    """200 connections that send a byte a second, beside a stream."""
    latencies_s: list[float] = []
    still_open = 0.0

    async def drip(server: Server) -> None:
        nonlocal still_open
        connections = [
            await asyncio.open_connection("127.0.0.1", server.port) for _ in range(SLOW_HANDSHAKES)
        ]
        head = b"GET /api/asr-streaming HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
        for number in range(round(FLOOD_S)):
            for _, writer in connections:
                if not writer.is_closing():
                    writer.write(head[number : number + 1])
            begun_s = time.monotonic()
            async with connected(server.target, KEY) as connection:
                await received(connection)
                latencies_s.append(time.monotonic() - begun_s)
            await asyncio.sleep(1.0)
        still_open = float(sum(not reader.at_eof() for reader, _ in connections))
        for _, writer in connections:
            writer.close()

    with servers.running() as server:
        seconds = QUIET_S + FLOOD_S
        paced = asyncio.run(paced_beside(server, 1, seconds, functools.partial(drip, server)))
    return {
        "survived": len(latencies_s) == round(FLOOD_S),
        "still open after 15 s": still_open,
        "new client ready, median ms": 1e3 * statistics.median(latencies_s or [math.inf]),
        "step's answer p99 before, ms": percentile(answers(paced, 1.0, QUIET_S), 99),
        "step's answer p99 meanwhile, ms": percentile(answers(paced, QUIET_S, seconds), 99),
    }


def hour_of_audio(servers: Servers, limit_s: float) -> Measured:
    """An hour of audio as fast as the server takes it, for so long at most."""
    message = vanishing.binary_frame(encode_audio(speech.speech(2.0)))
    with servers.running() as server:
        before = most = server.resident_bytes()
        client = vanishing.Client(server.port, KEY)
        client.go_to("ready")
        client.socket.settimeout(0.05)
        begun_s, sent_s, left = time.monotonic(), 0.0, memoryview(message)
        while time.monotonic() - begun_s < limit_s and sent_s < HOUR_S:
            try:
                left = left[client.socket.send(left) :]
            except TimeoutError:
                drain(client.socket)
            if not left:
                sent_s, left = sent_s + 2.0, memoryview(message)
                if sent_s % 20 == 0:
                    drain(client.socket)
                    most = max(most, server.resident_bytes())
        took_s = time.monotonic() - begun_s
        most = max(most, server.resident_bytes())
        client.vanish("rst")
        free_s = until(lambda: server.used_lanes() == 0, FREE_LIMIT_S)
        return {
            "survived": not server.ended() and free_s < math.inf,
            "audio taken, s": sent_s,
            "in, s": took_s,
            "memory, MB more": (most - before) / 1e6,
            "lane free after, ms": 1e3 * free_s,
        }


def drain(connection: socket.socket) -> None:
    """Takes what has come, so that nobody waits for us to read."""
    connection.setblocking(False)
    try:
        while connection.recv(1 << 16):
            pass
    except OSError:
        pass
    finally:
        connection.settimeout(0.05)


def many_sessions(servers: Servers, sessions: int) -> Measured:
    """Sessions one after the other: what of each stays. So few leave a KB of noise."""
    with servers.running() as server:
        begun_s = time.monotonic()
        taken = Crowd(server.target, at_once=LANES, kinds=[speak]).run(sessions, 40)
        took_s = time.monotonic() - begun_s
    growth = Growth.of(taken)
    return {
        "survived": True,
        "sessions": float(sessions),
        "session, ms": 1e3 * took_s / sessions,
        "memory, bytes a session": growth.resident_bytes,
        "descriptors a session": growth.descriptors,
        "memory at the end, MB": taken[-1].resident_bytes / 1e6,
    }
