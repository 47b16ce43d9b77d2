"""A worker's port: closed until it is ready, and free again when it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import msgpack
import psutil
import pytest

from moshi_ctl.client import AsrClient
from moshi_ctl.protocol import FRAME_SAMPLES
from support import configs, http, speech
from support.exposition import samples
from support.loopback import is_open
from support.refusals import refusal
from support.scripted_server import closed_port
from support.worker import KEY, Worker, starting, worker

# What sessions get to end in.
DRAIN_S = 4.0
GRACE_S = 1.0
FRAME_S = 0.08
# Often enough to fall into whatever short time there may be.
POLL_S = 0.005
MARK = "MOSHI_TEST_MARK"
PATH = "/api/asr-streaming"

UPGRADE = (
    f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\nkyutai-api-key: {KEY}\r\n"
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
).encode()


@pytest.fixture(name="env")
def _env(tiny_dir: Path) -> dict[str, str]:
    return {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "MOSHI_API_KEY": KEY}


def with_drain(folder: Path) -> Path:
    """The tiny model with `DRAIN_S`."""
    head = "[modules.asr]\n"
    return configs.tiny(folder, (head, f"[limits]\ndrain_s = {DRAIN_S}\n\n{head}"))


def upgrade(port: int) -> tuple[socket.socket, bytes] | None:
    """Asks for a session by hand: the connection, and what it said first; None where nobody is."""
    connection = socket.socket()
    connection.settimeout(30.0)
    try:
        connection.connect(("127.0.0.1", port))
    except ConnectionRefusedError:
        connection.close()
        return None
    connection.sendall(UPGRADE)
    return connection, connection.recv(4096)


def test_nobody_is_let_in_before_it_is_ready(env: dict[str, str], tmp_path: Path) -> None:
    port = closed_port()
    refused = 0
    with starting(configs.slow_to_start(tmp_path), cwd=tmp_path, env=env, port=port) as started:
        while (answer := upgrade(port)) is None:
            assert started.process.poll() is None, "".join(started.log)
            refused += 1
            time.sleep(POLL_S)
        connection, said = answer
        with connection:
            # The first one that gets through is served at once.
            assert said.startswith(b"HTTP/1.1 101 "), said
            _, _, frames = said.partition(b"\r\n\r\n")
            while len(frames) < 2:
                frames += connection.recv(4096)
            assert msgpack.unpackb(frames[2:])["type"] == "Ready"
        metrics = samples(started, module="asr")
        assert samples(started)["moshi_ready"] == 1
        assert metrics["warmup_success_total"] == 1
    assert refused > 10


def test_a_port_is_taken_from_the_beginning(env: dict[str, str], tmp_path: Path) -> None:
    port = closed_port()
    with starting(configs.slow_to_start(tmp_path), cwd=tmp_path, env=env, port=port) as first:
        first.until("loading the model", timeout_s=60.0)
        first.process.send_signal(signal.SIGSTOP)
        assert not any("listening" in line for line in first.log)
        arguments = ("--config", "tiny-random", "-a", "127.0.0.1", "-p", str(port))
        error, hint = refusal(*arguments, cwd=tmp_path, env=env, code=1, timeout_s=20.0)
        assert f"port {port} on 127.0.0.1 is in use" in error
        assert "--port" in str(hint)
        # Claimed, but not open.
        assert not is_open(port)
        first.process.send_signal(signal.SIGCONT)
        first.wait_until_it_listens(60.0)
        assert first.port == port
        assert first.get("/health/ready")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_models_are_loaded(number: int, env: dict[str, str], tmp_path: Path) -> None:
    port = closed_port()
    with starting(configs.slow_to_start(tmp_path), cwd=tmp_path, env=env, port=port) as started:
        started.until("loading the model", timeout_s=60.0)
        started.process.send_signal(number)
        assert started.process.wait(20.0) == 0
        assert not is_open(port)
    said = "".join(started.log)
    assert "listening" not in said
    assert "Traceback" not in said


@contextlib.asynccontextmanager
async def paced_session(url: str) -> AsyncIterator[asyncio.Task[None]]:
    """A session that hears speech as it is spoken and reads what comes, until it is closed."""
    async with AsrClient(url, key=KEY) as asr:

        async def speak() -> None:
            for n in range(10_000):
                start = n * FRAME_SAMPLES % (2 * 24_000)
                await asr.send_audio(speech.speech()[start : start + FRAME_SAMPLES])
                await asyncio.sleep(FRAME_S)

        async def listen() -> None:
            async for _ in asr:
                pass

        tasks = [asyncio.create_task(speak()), asyncio.create_task(listen())]
        try:
            yield tasks[1]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def marked(mark: str) -> list[psutil.Process]:
    """The processes that were started with this mark, and what they started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_loaded_server_ends_in_time_and_leaves_nothing(
    number: int, env: dict[str, str], tmp_path: Path
) -> None:
    mark = uuid.uuid4().hex
    env = {**env, MARK: mark}

    async def load_and_end(started: Worker) -> int:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(paced_session(started.url))
            # One that never reads and never answers a close; and a file that takes long.
            deaf = upgrade(started.port)
            assert deaf is not None
            stack.enter_context(deaf[0])
            audio = stack.enter_context(socket.create_connection(("127.0.0.1", started.port)))
            head = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nkyutai-api-key: {KEY}\r\n"
            audio.sendall(f"{head}Content-Length: 1000000\r\n\r\n".encode() + bytes(1000))
            await asyncio.sleep(1.0)
            assert [module["used_slots"] for module in started.modules()] >= ["3"]
            assert marked(mark)
            started.process.send_signal(number)
            return await asyncio.to_thread(started.process.wait, DRAIN_S + GRACE_S)

    with worker(with_drain(tmp_path), cwd=tmp_path, env=env) as started:
        assert asyncio.run(load_and_end(started)) == 0
        assert marked(mark) == []
        assert not is_open(started.port)
        with socket.socket() as again:
            # Connections that were closed a moment ago do not count, as for the server.
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", started.port))
        with worker("tiny-random", cwd=tmp_path, env=env, port=started.port) as second:
            assert second.port == started.port
            body = speech.SPEECH.read_bytes()
            answer = http.request(second.port, "POST", PATH, body, {"kyutai-api-key": KEY})
            assert answer.status == 200
    assert "Traceback" not in "".join(started.log)


def test_a_second_signal_does_not_wait(env: dict[str, str], tmp_path: Path) -> None:
    with worker(with_drain(tmp_path), cwd=tmp_path, env=env) as started:
        deaf = upgrade(started.port)
        assert deaf is not None
        with deaf[0]:
            started.process.send_signal(signal.SIGTERM)
            started.until("shutting down")
            started.process.send_signal(signal.SIGTERM)
            started.process.wait(DRAIN_S / 2)
