"""The client against a scripted server, for what a real one does too rarely."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from moshi_ctl import client
from moshi_ctl.client import AsrClient, Transcript, listen, transcribe, transcribe_file
from moshi_ctl.errors import AudioError, ClientError, NoFreeChannelsError
from moshi_ctl.protocol import FRAME_SAMPLES, SAMPLE_RATE_HZ, EndWord, Samples, Step, Word
from support import speech

TIMEOUT_S = 20.0

Script = Callable[[ServerConnection], Awaitable[None]]
Check = Callable[[ServerConnection, Request], Response | None]


def packed(**message: Any) -> bytes:
    data: bytes = msgpack.packb(message)
    return data


@contextlib.asynccontextmanager
async def scripted(script: Script, check: Check | None = None) -> AsyncIterator[str]:
    async with serve(script, "127.0.0.1", 0, process_request=check, max_size=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"ws://127.0.0.1:{port}"


def run(script: Script, samples: Samples | None = None, **options: Any) -> Transcript:
    async def session() -> Transcript:
        async with scripted(script, options.pop("check", None)) as url:
            blocks = [samples if samples is not None else np.zeros(10, dtype=np.float32)]
            return await asyncio.wait_for(transcribe(blocks, url, **options), TIMEOUT_S)

    return asyncio.run(session())


async def heard_until_marker(connection: ServerConnection) -> tuple[list[float], int]:
    """The audio before the marker, and the marker's id."""
    samples: list[float] = []
    async for data in connection:
        message = msgpack.unpackb(data)
        if message["type"] == "Marker":
            return samples, message["id"]
        samples.extend(message["pcm"])
    raise AssertionError("no marker came")


def test_a_whole_session() -> None:
    sent = speech.speech(1.0)[:-100]
    heard: list[float] = []
    tail: list[str] = []

    async def script(connection: ServerConnection) -> None:
        await connection.send(packed(type="Ready"))
        samples, marker_id = await heard_until_marker(connection)
        heard.extend(samples)
        for number in range(3):
            await connection.send(packed(type="Step", step_idx=number, prs=[], buffered_pcm=0))
        await connection.send(packed(type="Word", text="one", start_time=1.5))
        await connection.send(packed(type="EndWord", stop_time=1.75))
        await connection.send(packed(type="Unheard of"))
        await connection.send(packed(type="Word", text="two", start_time=1.84))
        tail.append(msgpack.unpackb(await connection.recv())["type"])
        await connection.send(packed(type="Marker", id=marker_id))
        await connection.wait_closed()

    words: list[Word] = []
    transcript = run(script, sent, lead_in_s=0.08, on_word=words.append)
    assert transcript.text == "one two"
    # Times are those of the file, although a frame of silence went first.
    assert transcript.words == (Word("one", 1.42, 1.67), Word("two", 1.76))
    assert words == [Word("one", 1.42), Word("two", 1.76)]
    assert transcript.duration_s == len(sent) / SAMPLE_RATE_HZ
    # Silence in front, the audio bit for bit, silence up to a whole frame; more after the marker.
    assert len(heard) % FRAME_SAMPLES == 0
    lead, body = np.split(np.array(heard, dtype=np.float32), [FRAME_SAMPLES])
    assert not lead.any()
    np.testing.assert_array_equal(body[: len(sent)], sent)
    assert not body[len(sent) :].any()
    assert tail == ["Audio"]


def test_progress_follows_the_server_s_steps() -> None:
    async def script(connection: ServerConnection) -> None:
        await connection.send(packed(type="Ready"))
        _, marker_id = await heard_until_marker(connection)
        for number in range(40):
            await connection.send(packed(type="Step", step_idx=number, prs=[0.5], buffered_pcm=0))
        await connection.send(packed(type="Marker", id=marker_id))

    done: list[float] = []
    run(script, speech.speech(2.0), lead_in_s=0.0, on_progress=done.append)
    assert done[-1] == 2.0
    assert 0.08 in done


def test_silence_keeps_coming_until_the_marker_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_TAIL_EVERY_S", 0.05)

    async def script(connection: ServerConnection) -> None:
        await connection.send(packed(type="Ready"))
        _, marker_id = await heard_until_marker(connection)
        for _ in range(5):
            await connection.recv()
        await connection.send(packed(type="Marker", id=marker_id))

    run(script)


def test_events_can_be_followed_one_by_one() -> None:
    async def script(connection: ServerConnection) -> None:
        await connection.send(packed(type="Ready"))
        await connection.send(packed(type="Step", step_idx=1, prs=[0.25], buffered_pcm=7))
        await connection.send(packed(type="Word", text="w", start_time=0.0))

    async def session() -> list[client.AsrEvent]:
        async with scripted(script) as url, AsrClient(url) as asr:
            return [event async for event in asr]

    assert asyncio.run(session()) == [Step(1, (0.25,), 7), Word("w", 0.0)]


async def spoken(*blocks: Samples) -> AsyncGenerator[Samples, None]:
    for block in blocks:
        yield block


def test_listening_gives_what_is_heard_while_it_is_heard() -> None:
    """Each block waits for the answer to the one before: nothing is held back on either side."""
    answered = asyncio.Event()
    sent = [speech.speech(1.0)[:100], speech.speech(1.0)[100:5000]]
    heard: list[float] = []

    async def script(connection: ServerConnection) -> None:
        await connection.send(packed(type="Ready"))
        await connection.recv()
        for number in (7, 8):
            await connection.send(packed(type="Step", step_idx=number, prs=[0.5], buffered_pcm=3))
        await connection.recv()
        await connection.send(packed(type="Word", text="one", start_time=1.5))
        await connection.send(packed(type="EndWord", stop_time=1.75))
        samples, marker_id = await heard_until_marker(connection)
        heard.extend(samples)
        await connection.send(packed(type="Marker", id=marker_id))
        await connection.send(packed(type="Word", text="late", start_time=9.0))

    async def source() -> AsyncGenerator[Samples, None]:
        yield sent[0]
        await answered.wait()
        yield sent[1]

    async def session() -> list[client.SpeechEvent]:
        events: list[client.SpeechEvent] = []
        async with scripted(script) as url:
            async for event in listen(source(), url, lead_in_s=0.08):
                events.append(event)
                if isinstance(event, EndWord):
                    answered.set()
        return events

    events = asyncio.run(asyncio.wait_for(session(), TIMEOUT_S))
    # The step of the silence in front is left out, and times are those of the source.
    assert events == [Step(0, (0.5,), 3), Word("one", 1.42), EndWord(1.67)]
    np.testing.assert_array_equal(np.array(heard[: len(sent[1])], dtype=np.float32), sent[1])
    assert (100 + len(heard)) % FRAME_SAMPLES == 0


def test_a_source_that_fails_ends_the_session() -> None:
    closed = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.send(packed(type="Ready"))
        await connection.wait_closed()
        closed.set()

    async def source() -> AsyncGenerator[Samples, None]:
        yield np.zeros(10, dtype=np.float32)
        raise AudioError("the microphone is gone")

    async def session() -> None:
        async with scripted(script) as url:
            with pytest.raises(AudioError, match="is gone"):
                async for _ in listen(source(), url):
                    pass
            await closed.wait()

    asyncio.run(asyncio.wait_for(session(), TIMEOUT_S))


def test_a_server_that_fails_ends_listening_though_nobody_speaks() -> None:
    async def script(connection: ServerConnection) -> None:
        await connection.send(packed(type="Ready"))
        await connection.send(packed(type="Word", text="one", start_time=1.0))
        await connection.send(packed(type="Error", message="the model failed"))

    async def source() -> AsyncGenerator[Samples, None]:
        await asyncio.Event().wait()
        yield np.zeros(10, dtype=np.float32)

    async def session() -> None:
        async with scripted(script) as url:
            events = listen(source(), url)
            assert await anext(events) == Word("one", 0.04)
            with pytest.raises(ClientError, match="the model failed"):
                await anext(events)

    asyncio.run(asyncio.wait_for(session(), TIMEOUT_S))


def test_whoever_leaves_early_closes_the_session() -> None:
    closed = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.send(packed(type="Ready"))
        await connection.send(packed(type="Word", text="one", start_time=1.0))
        await connection.wait_closed()
        closed.set()

    async def session() -> None:
        silence = np.zeros(10, dtype=np.float32)
        async with scripted(script) as url:
            async with contextlib.aclosing(listen(spoken(silence), url)) as events:
                async for event in events:
                    assert isinstance(event, Word)
                    break
            await closed.wait()

    asyncio.run(asyncio.wait_for(session(), TIMEOUT_S))


def test_the_key_travels_in_the_header_only() -> None:
    seen: list[tuple[str, str | None]] = []

    def check(connection: ServerConnection, request: Request) -> Response:
        seen.append((request.path, request.headers.get("kyutai-api-key")))
        return connection.respond(401, "")

    async def script(_: ServerConnection) -> None: ...

    for key, said in [("s3cret", "does not know this key"), (None, "asks for a key")]:
        with pytest.raises(ClientError, match=said) as caught:
            run(script, check=check, key=key)
        assert "--key" in str(caught.value.hint)
        assert "s3cret" not in f"{caught.value}{caught.value.hint}"
    assert seen == [("/api/asr-streaming", "s3cret"), ("/api/asr-streaming", None)]


@pytest.mark.parametrize(("status", "said"), [(404, "nothing at this path"), (503, "HTTP 503")])
def test_other_refusals(status: int, said: str) -> None:
    async def script(_: ServerConnection) -> None: ...

    with pytest.raises(ClientError, match=said):
        run(script, check=lambda connection, _: connection.respond(status, ""))


def test_no_free_channels() -> None:
    async def script(connection: ServerConnection) -> None:
        await connection.send(packed(type="Error", message="no free channels"))

    with pytest.raises(NoFreeChannelsError) as caught:
        run(script)
    assert "batch_size" in str(caught.value.hint)


def test_an_error_in_mid_session_wins_over_the_broken_connection() -> None:
    async def script(connection: ServerConnection) -> None:
        await connection.send(packed(type="Ready"))
        await connection.recv()
        await connection.send(packed(type="Error", message="the model failed"))
        await connection.close(1011)

    with pytest.raises(ClientError, match="the server reports: the model failed"):
        run(script, speech.speech(3.0))


@pytest.mark.parametrize(
    ("code", "reason", "said"),
    [
        (1001, "bye", r"closed the session with code 1001 \(bye\)"),
        (1009, "", "closed the session with code 1009"),
        (1000, "", "closed the session before all was transcribed"),
    ],
)
def test_a_session_that_is_closed_early(code: int, reason: str, said: str) -> None:
    async def script(connection: ServerConnection) -> None:
        await connection.send(packed(type="Ready"))
        await connection.recv()
        await connection.close(code, reason)

    with pytest.raises(ClientError, match=said) as caught:
        run(script, speech.speech(3.0))
    assert caught.value.hint


def test_a_server_that_vanishes() -> None:
    async def script(connection: ServerConnection) -> None:
        await connection.send(packed(type="Ready"))
        connection.transport.abort()

    with pytest.raises(ClientError, match="broke off"):
        run(script)


def test_a_server_that_never_gets_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "OPEN_TIMEOUT_S", 0.2)

    async def script(connection: ServerConnection) -> None:
        await connection.wait_closed()

    with pytest.raises(ClientError, match="not ready within"):
        run(script)


def test_a_server_that_talks_otherwise() -> None:
    async def script(connection: ServerConnection) -> None:
        await connection.send("hello")

    with pytest.raises(ClientError, match="text message"):
        run(script)


def test_a_port_that_speaks_no_websocket() -> None:
    async def session() -> None:
        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"SSH-2.0-something\r\n")
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            async with AsrClient(f"ws://127.0.0.1:{port}"):
                pass

    with pytest.raises(ClientError, match="does not speak WebSocket"):
        asyncio.run(session())


def test_an_unreadable_file_takes_no_place_on_the_server(tmp_path: Path) -> None:
    with pytest.raises(AudioError):
        asyncio.run(transcribe_file(tmp_path / "missing.wav", "ws://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("url", "complete"),
    [
        ("ws://a:1", "ws://a:1/api/asr-streaming"),
        ("ws://a:1/", "ws://a:1/api/asr-streaming"),
        ("http://a", "ws://a/api/asr-streaming"),
        ("https://a/x?auth_id=k", "wss://a/x?auth_id=k"),
    ],
)
def test_addresses(url: str, complete: str) -> None:
    assert AsrClient(url).url == complete


@pytest.mark.parametrize("url", ["", "a:1", "ftp://a", "ws://", "127.0.0.1:8080", "ws://a:port"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ClientError, match="is not the address of a server"):
        AsrClient(url)


def test_sending_outside_a_session() -> None:
    with pytest.raises(ClientError, match="not open"):
        asyncio.run(AsrClient().send_marker(0))
