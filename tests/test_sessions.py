"""Sessions with a real worker and a real, if tiny and random, model over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgpack
import numpy as np
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from moshi_ctl.client import AsrClient, Transcript, transcribe, transcribe_file
from moshi_ctl.errors import ClientError, NoFreeChannelsError
from moshi_ctl.protocol import (
    FRAME_RATE_HZ,
    FRAME_SAMPLES,
    SAMPLE_RATE_HZ,
    EndWord,
    Marker,
    Samples,
    Step,
    Word,
)
from support import cli, speech
from support.http import request
from support.worker import KEY, Worker

PATH = "/api/asr-streaming"
LANES = 4
HEADS = 4
DELAY_FRAMES = 6
TIMEOUT_S = 60.0
AUTHORIZED = {"kyutai-api-key": KEY}


@dataclass
class Session:
    """What a session was told, in order."""

    words: list[Word] = field(default_factory=list)
    ends: list[EndWord] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    markers: list[tuple[int, int]] = field(default_factory=list)
    """Each marker's id, and after how many steps it came."""


async def follow(asr: AsrClient, last_marker: int) -> Session:
    session = Session()
    async for event in asr:
        match event:
            case Word():
                session.words.append(event)
            case EndWord():
                session.ends.append(event)
            case Step():
                session.steps.append(event)
            case Marker(marker_id):
                session.markers.append((marker_id, len(session.steps)))
                if marker_id == last_marker:
                    return session
    raise AssertionError("closed before the last marker")


async def talk(url: str, samples: Samples, chunk: int) -> Session:
    """One session: the samples in chunks, a marker, silence for the delay."""
    async with AsrClient(url, key=KEY) as asr:
        following = asyncio.create_task(follow(asr, 1))
        for start in range(0, len(samples), chunk):
            await asr.send_audio(samples[start : start + chunk])
        await asr.send_marker(1)
        await asr.send_audio(np.zeros(2 * DELAY_FRAMES * FRAME_SAMPLES, dtype=np.float32))
        return await asyncio.wait_for(following, TIMEOUT_S)


def post(server: Worker, body: bytes) -> list[dict[str, object]]:
    answer = request(server.port, "POST", PATH, body, AUTHORIZED)
    assert answer.status == 200, answer.body
    messages: list[dict[str, object]] = json.loads(answer.body)
    return messages


def test_speech_comes_back_as_words(server: Worker) -> None:
    samples = speech.speech()
    frames = len(samples) // FRAME_SAMPLES
    session = asyncio.run(talk(server.url, samples[: frames * FRAME_SAMPLES], FRAME_SAMPLES))
    assert session.words
    assert session.ends
    assert [word.start_time for word in session.words] == sorted(
        word.start_time for word in session.words
    )
    assert all(len(step.prs) == HEADS for step in session.steps)
    assert all(0.0 <= probability <= 1.0 for step in session.steps for probability in step.prs)
    indices = [step.step_idx for step in session.steps]
    assert indices == list(range(indices[0], indices[0] + len(indices)))
    # Not before its own audio passed the model's delay, and not much after.
    ((_, marker_step),) = session.markers
    assert frames + DELAY_FRAMES - 1 <= marker_step <= frames + DELAY_FRAMES + 1


@pytest.mark.parametrize("chunk", [160, 480, 1_919, 5_000, 24_000])
def test_the_size_of_messages_does_not_matter(server: Worker, chunk: int) -> None:
    samples = speech.speech()
    expected = asyncio.run(talk(server.url, samples, FRAME_SAMPLES))
    session = asyncio.run(talk(server.url, samples, chunk))
    assert session.words == expected.words
    assert session.ends == expected.ends
    assert [step.prs for step in session.steps[:30]] == [step.prs for step in expected.steps[:30]]


def test_neighbours_change_nothing(server: Worker) -> None:
    samples = speech.speech()
    expected = asyncio.run(talk(server.url, samples, FRAME_SAMPLES))

    async def all_at_once() -> list[Session]:
        others = [talk(server.url, samples[:: -1 - i] * 0.5, 1_000) for i in range(LANES - 1)]
        return list(await asyncio.gather(talk(server.url, samples, FRAME_SAMPLES), *others))

    session, *_ = asyncio.run(all_at_once())
    assert session.words == expected.words
    assert [step.prs for step in session.steps] == [step.prs for step in expected.steps]


def test_many_markers_each_once_in_order(server: Worker) -> None:
    async def session() -> Session:
        async with AsrClient(server.url, key=KEY) as asr:
            following = asyncio.create_task(follow(asr, 99))
            for number in range(20):
                await asr.send_audio(np.zeros(700 * (1 + number % 5), dtype=np.float32))
                await asr.send_marker(number)
            await asr.send_marker(99)
            await asr.send_audio(np.zeros(20 * FRAME_SAMPLES, dtype=np.float32))
            return await asyncio.wait_for(following, TIMEOUT_S)

    markers = asyncio.run(session()).markers
    assert [marker_id for marker_id, _ in markers] == [*range(20), 99]


def test_a_file_through_the_client_equals_the_same_as_a_post(server: Worker) -> None:
    path = speech.SPEECH

    async def streamed() -> Transcript:
        return await transcribe_file(path, server.url, key=KEY, lead_in_s=0.0)

    transcript = asyncio.run(streamed())
    posted = post(server, path.read_bytes())
    words = [message for message in posted if message["type"] == "Word"]
    # A file has an end, so a word that nothing follows is said; a stream could go on.
    assert len(words) - len(transcript.words) in (0, 1)
    words = words[: len(transcript.words)]
    assert [message["text"] for message in words] == [word.text for word in transcript.words]
    starts = [message["start_time"] for message in words]
    assert starts == pytest.approx([word.start_time for word in transcript.words], abs=1e-3)
    assert {message["type"] for message in posted} <= {"Word", "EndWord"}


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.flac", "a.ogg"])
@pytest.mark.parametrize(("rate_hz", "channels"), [(8_000, 1), (24_000, 1), (44_100, 2)])
def test_files_of_any_kind_can_be_posted(
    server: Worker, tmp_path: Path, name: str, rate_hz: int, channels: int
) -> None:
    path = speech.write(tmp_path / name, speech.speech(), rate_hz, channels)
    assert any(message["type"] == "Word" for message in post(server, path.read_bytes()))


def test_opus_can_be_posted(server: Worker, tmp_path: Path) -> None:
    path = speech.write(tmp_path / "a.ogg", speech.speech(), 48_000, subtype="OPUS")
    assert any(message["type"] == "Word" for message in post(server, path.read_bytes()))


def test_what_is_no_audio_cannot(server: Worker) -> None:
    answer = request(server.port, "POST", PATH, b"no audio", AUTHORIZED)
    assert 400 <= answer.status < 500
    assert answer.body


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (PATH, {}),
        (PATH, {"kyutai-api-key": "wrong"}),
        (PATH, {"kyutai-api-key": ""}),
        (PATH, {"kyutai-api-key": f"{KEY} "[:-2]}),
        (PATH, {"kyutai-api-key": "x" * 4096}),
        (f"{PATH}?auth_id=wrong", {}),
        (f"{PATH}?auth_id=", {}),
    ],
)
def test_without_the_key_nothing_is_served(
    server: Worker, path: str, headers: dict[str, str]
) -> None:
    assert request(server.port, "POST", path, b"", headers).status == 401

    async def upgrade() -> None:
        url = f"ws://127.0.0.1:{server.port}{path}"
        async with connect(url, additional_headers=headers, proxy=None):
            pass

    with pytest.raises(InvalidStatus) as caught:
        asyncio.run(upgrade())
    assert caught.value.response.status_code == 401


def test_the_key_may_be_in_the_query(server: Worker) -> None:
    async def session() -> None:
        async with AsrClient(f"{server.url}?auth_id={KEY}"):
            pass

    asyncio.run(session())


def test_a_full_server_says_so_and_recovers(server: Worker) -> None:
    async def fill() -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(LANES):
                await stack.enter_async_context(AsrClient(server.url, key=KEY))
            (module,) = server.modules()
            assert (module["used_slots"], module["total_slots"]) == (str(LANES), str(LANES))
            with pytest.raises(NoFreeChannelsError):
                await asyncio.wait_for(AsrClient(server.url, key=KEY).__aenter__(), 5)
            answer = request(server.port, "POST", PATH, speech.SPEECH.read_bytes(), AUTHORIZED)
            assert answer.status in (429, 503)
            assert int(answer.headers["retry-after"]) >= 0
        for _ in range(50):
            if server.modules()[0]["used_slots"] == "0":
                break
            await asyncio.sleep(0.1)
        async with AsrClient(server.url, key=KEY):
            pass

    asyncio.run(fill())


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        msgpack.packb({"type": "Nothing known"}),
        msgpack.packb({"type": "Audio"}),
        msgpack.packb({"type": "Audio", "pcm": "text"}),
        msgpack.packb({"type": "Audio", "pcm": [float("nan")] * FRAME_SAMPLES}),
        msgpack.packb({"type": "OggOpus", "data": b"not ogg"}),
    ],
    ids=["garbage", "type", "no pcm", "pcm", "nan", "ogg"],
)
def test_a_bad_message_is_explained_and_harms_nobody_else(server: Worker, data: bytes) -> None:
    samples = speech.speech(1.0)
    expected = asyncio.run(talk(server.url, samples, FRAME_SAMPLES))

    async def both() -> Session:
        good = asyncio.create_task(talk(server.url, samples, FRAME_SAMPLES))
        async with connect(server.url, additional_headers=AUTHORIZED, proxy=None) as bad:
            assert msgpack.unpackb(await bad.recv())["type"] == "Ready"
            await bad.send(data)
            said: list[dict[str, object]] = []
            with contextlib.suppress(ConnectionClosed):
                while True:
                    said.append(msgpack.unpackb(await asyncio.wait_for(bad.recv(), 10)))
            errors = [message for message in said if message["type"] == "Error"]
            assert len(errors) == 1
            assert errors[0]["message"]
        return await good

    session = asyncio.run(both())
    assert session.words == expected.words


def test_messages_as_kyutai_s_clients_send_them(server: Worker) -> None:
    """64-bit floats, integers among them, extra fields, an `Init` first."""

    async def session() -> list[dict[str, object]]:
        async with connect(server.url, additional_headers=AUTHORIZED, proxy=None) as raw:
            await raw.send(msgpack.packb({"type": "Init"}))
            pcm = [0, 0.25, -0.25, *[0.0] * (SAMPLE_RATE_HZ - 3)]
            await raw.send(msgpack.packb({"type": "Audio", "pcm": pcm, "extra": None}))
            await raw.send(msgpack.packb({"type": "Marker", "id": 5}))
            await raw.send(msgpack.packb({"type": "Audio", "pcm": [0.0] * SAMPLE_RATE_HZ}))
            said: list[dict[str, object]] = []
            while not said or said[-1]["type"] != "Marker":
                said.append(msgpack.unpackb(await asyncio.wait_for(raw.recv(), 10)))
            return said

    said = asyncio.run(session())
    assert said[0] == {"type": "Ready"}
    assert said[-1] == {"type": "Marker", "id": 5}


def test_a_session_can_outlast_its_model_s_context(server: Worker) -> None:
    # 100 frames of context; this is 150.
    samples = np.resize(speech.speech(), round(150 / FRAME_RATE_HZ * SAMPLE_RATE_HZ))
    session = asyncio.run(talk(server.url, samples, 24_000))
    assert len(session.steps) >= 150


def test_leaving_does_not_wait_for_unread_messages(server: Worker) -> None:
    async def leave() -> float:
        async with AsrClient(server.url, key=KEY) as asr:
            await asr.send_audio(speech.speech())
            await asyncio.sleep(0.5)
            left = time.monotonic()
        return time.monotonic() - left

    assert asyncio.run(leave()) < 2.0


def test_what_dashboards_ask_for(server: Worker) -> None:
    asyncio.run(talk(server.url, speech.speech(1.0), FRAME_SAMPLES))
    metrics = server.get("/metrics")
    for name in (
        "asr_connect",
        "asr_model_step_duration_bucket",
        "asr_connection_num_steps_bucket",
        "asr_open_channels",
    ):
        assert f"\n{name}" in f"\n{metrics}"
    (module,) = server.modules()
    assert module["type"] == "batched_asr"
    assert module["path"] == PATH
    assert all(isinstance(value, str) for value in module.values())


def test_the_command_line_transcribes(server: Worker, tmp_path: Path) -> None:
    async def expected() -> Transcript:
        return await transcribe_file(speech.SPEECH, server.url, key=KEY)

    transcript = asyncio.run(expected())
    env = {"MOSHI_API_KEY": f"{KEY},other"}
    text = cli.run("transcribe", speech.SPEECH, "--url", server.url, cwd=tmp_path, env=env)
    assert (text.returncode, text.stdout) == (0, f"{transcript.text}\n"), text.stderr
    assert text.stderr == ""

    options = ["--url", server.url, "--key", KEY, "--output", "out"]
    (tmp_path / "out").mkdir()
    for form, suffix in [("json", "json"), ("srt", "srt"), ("vtt", "vtt"), ("text", "txt")]:
        result = cli.run("transcribe", speech.SPEECH, *options, "--format", form, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "out" / f"speech.{suffix}").stat().st_size > 0
    document = json.loads((tmp_path / "out/speech.json").read_text())
    assert [word["text"] for word in document["words"]] == [w.text for w in transcript.words]
    assert document["duration"] == pytest.approx(transcript.duration_s, abs=1e-3)


def test_the_command_line_explains_a_wrong_key(server: Worker, tmp_path: Path) -> None:
    for arguments, said in [(["--key", "wrong"], "does not know this key"), ([], "asks for a key")]:
        result = cli.run("transcribe", speech.SPEECH, "--url", server.url, *arguments, cwd=tmp_path)
        assert result.returncode == 1
        assert said in result.stderr
        assert "hint: " in result.stderr


def test_a_path_that_is_not_served(server: Worker) -> None:
    async def session() -> None:
        await transcribe([speech.speech(1.0)], f"ws://127.0.0.1:{server.port}/api/none", key=KEY)

    with pytest.raises(ClientError, match="nothing at this path"):
        asyncio.run(session())
