"""The embedded model hears real words, on every way that audio can take to it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgpack
import numpy as np
import pytest
from websockets.asyncio.client import connect

from moshi_ctl import env, shipped
from moshi_ctl.client import AsrClient, AsrEvent, Transcript, transcribe
from moshi_ctl.protocol import (
    FRAME_RATE_HZ,
    FRAME_S,
    SAMPLE_RATE_HZ,
    Marker,
    Samples,
    Step,
    Word,
    decode,
    encode_audio,
    encode_marker,
)
from support import cli, speech
from support.http import request
from support.spoken import NAMES, spoken
from support.worker import KEY, Worker, worker

Result = TypeVar("Result")

AUTHORIZED = {"kyutai-api-key": KEY}
TIMEOUT_S = 60.0
MOST_BYTES = 10_000_000
# Of the words of a recording, on average.
TIMES_OFF_BY_S = 0.25
# How long nobody has spoken when head 2 says so, and a second for the model to be sure.
PAUSE_HEAD, PAUSE_S, SURE_S = 2, 0.72, 1.0


@contextmanager
def serving(folder: Path, *arguments: str, change: tuple[str, str] = ("", "")) -> Iterator[Worker]:
    """A worker with the shipped configuration, less its log in the user's home."""
    text = shipped.path_of("demo").read_text().replace("$HOME/.local/state", str(folder))
    assert change[0] in text
    config = folder / "demo.toml"
    config.write_text(text.replace(*change, 1) if change[0] else text)
    with worker(config, *arguments, cwd=folder, device=None) as started:
        yield started


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with serving(tmp_path_factory.mktemp("embedded")) as started:
        yield started


def run(session: Coroutine[Any, Any, Result]) -> Result:
    """Waits for what `session` returns, but not for ever."""

    async def bounded() -> Result:
        return await asyncio.wait_for(session, TIMEOUT_S)

    return asyncio.run(bounded())


def hear(server: Worker, samples: Samples) -> Transcript:
    return run(transcribe([samples], server.url, key=KEY))


def texts(words: Sequence[Word]) -> tuple[str, ...]:
    return tuple(word.text for word in words)


def post(server: Worker, body: bytes) -> tuple[str, ...]:
    answer = request(server.port, "POST", "/api/asr-streaming", body, AUTHORIZED)
    assert answer.status == 200, answer
    messages = json.loads(answer.body)
    return tuple(message["text"] for message in messages if message["type"] == "Word")


def test_the_files_are_small_enough_to_come_with_a_package() -> None:
    sizes = [file.stat().st_size for file in env.embedded_folder().iterdir()]
    assert 0 < sum(sizes) <= MOST_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_words_and_their_times_through_the_websocket(embedded: Worker, name: str) -> None:
    recording = spoken(name)
    heard = hear(embedded, recording.samples()).words
    assert texts(heard) == recording.words
    starts = np.array([word.start_time for word in heard]) - recording.starts_s
    assert np.abs(starts).mean() <= TIMES_OFF_BY_S, starts
    ends = np.array([word.stop_time for word in heard]) - recording.ends_s
    assert np.abs(ends).mean() <= TIMES_OFF_BY_S, ends


def test_all_lanes_at_once_hear_what_one_hears_alone(embedded: Worker) -> None:
    lanes = int(embedded.modules()[0]["total_slots"])
    recordings = [spoken(NAMES[lane % len(NAMES)]) for lane in range(lanes)]
    alone = {name: hear(embedded, spoken(name).samples()) for name in NAMES}

    async def together() -> list[Transcript]:
        sessions = (transcribe([r.samples()], embedded.url, key=KEY) for r in recordings)
        return await asyncio.gather(*sessions)

    heard = run(together())
    assert len(heard) == lanes > 1
    for lane, transcript in enumerate(heard):
        assert transcript == alone[NAMES[lane % len(NAMES)]]


@pytest.mark.parametrize("rate_hz", [8_000, 44_100])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("name", NAMES)
def test_files_of_other_rates(
    embedded: Worker, tmp_path: Path, name: str, suffix: str, rate_hz: int
) -> None:
    recording = spoken(name)
    path = speech.write(tmp_path / f"a.{suffix}", recording.samples(), rate_hz)
    assert post(embedded, path.read_bytes()) == recording.words
    address = ["--url", embedded.url, "--key", KEY]
    streamed = cli.run("transcribe", path, *address, cwd=tmp_path).stdout
    assert tuple(streamed.split()) == recording.words


@pytest.mark.parametrize("name", NAMES)
def test_a_posted_file_ends_with_its_last_word(embedded: Worker, tmp_path: Path, name: str) -> None:
    recording = spoken(name)
    last = round(recording.ends_s[-1] * SAMPLE_RATE_HZ)
    cut = speech.write(tmp_path / "cut.wav", recording.samples()[:last], SAMPLE_RATE_HZ)
    assert post(embedded, cut.read_bytes()) == recording.words


def test_opus_as_a_file_and_as_a_stream(embedded: Worker, tmp_path: Path) -> None:
    recording = spoken("digits")
    file = speech.write(tmp_path / "a.ogg", recording.samples(), 48_000, subtype="OPUS")
    assert post(embedded, file.read_bytes()) == recording.words
    assert texts(run(through_opus(embedded, file.read_bytes()))) == recording.words


async def through_opus(server: Worker, data: bytes) -> list[Word]:
    """The words of an Ogg stream that is sent a kilobyte at a time."""
    words: list[Word] = []
    async with connect(server.url, additional_headers=AUTHORIZED) as socket:
        for first in range(0, len(data), 1024):
            piece = data[first : first + 1024]
            await socket.send(msgpack.packb({"type": "OggOpus", "data": piece}))
        await socket.send(encode_marker(1))
        await socket.send(encode_audio(np.zeros(2 * SAMPLE_RATE_HZ, np.float32)))
        async for message in socket:
            assert isinstance(message, bytes)
            event = decode(message)
            if event == Marker(1):
                return words
            if isinstance(event, Word):
                words.append(event)
    raise AssertionError("closed before the marker")


def test_a_marker_comes_after_the_words_before_it_and_before_those_after(embedded: Worker) -> None:
    recording = spoken("digits")
    # In the middle of the pause between two phrases.
    middle_s = (recording.ends_s[4] + recording.starts_s[5]) / 2
    cut = round(middle_s * SAMPLE_RATE_HZ)
    samples = recording.samples()

    async def session() -> list[AsrEvent]:
        events = []
        async with AsrClient(embedded.url, key=KEY) as asr:
            await asr.send_audio(samples[:cut])
            await asr.send_marker(1)
            await asr.send_audio(samples[cut:])
            await asr.send_marker(2)
            await asr.send_audio(np.zeros(2 * SAMPLE_RATE_HZ, np.float32))
            async for event in asr:
                events.append(event)
                if event == Marker(2):
                    return events
        raise AssertionError("closed before the marker")

    events = run(session())
    first = events.index(Marker(1))
    words = [[e.text for e in part if isinstance(e, Word)] for part in (events[:first], events)]
    assert words == [list(recording.words[:5]), list(recording.words)]


def test_the_pause_head_fires_after_speech_and_not_in_it(embedded: Worker) -> None:
    recording = spoken("digits")
    silence = np.zeros(3 * SAMPLE_RATE_HZ, np.float32)

    async def session() -> list[float]:
        prs = []
        async with AsrClient(embedded.url, key=KEY) as asr:
            await asr.send_audio(np.concatenate([recording.samples(), silence]))
            await asr.send_marker(1)
            await asr.send_audio(silence)
            async for event in asr:
                if isinstance(event, Step):
                    prs.append(event.prs[PAUSE_HEAD])
                if event == Marker(1):
                    return prs
        raise AssertionError("closed before the marker")

    prs = np.array(run(session()))
    # The five digits of the first phrase, which follow each other without a pause.
    speaking = slice(
        round(recording.starts_s[1] * FRAME_RATE_HZ), round(recording.ends_s[4] * FRAME_RATE_HZ)
    )
    assert prs[speaking].max() < 0.5
    end_s = recording.ends_s[-1]
    silent = prs[round(end_s * FRAME_RATE_HZ) :]
    fired_s = float(np.argmax(silent > 0.5)) * FRAME_S
    assert silent.max() > 0.5
    assert fired_s <= PAUSE_S + SURE_S


@pytest.mark.parametrize("precision", ["f32", "f16", "q8"])
def test_the_same_words_in_every_precision(tmp_path: Path, precision: str) -> None:
    with serving(
        tmp_path, change=('device = "cpu"', f'device = "cpu"\nprecision = "{precision}"')
    ) as server:
        assert precision in server.until("the model is loaded")
        for name in NAMES:
            assert texts(hear(server, spoken(name).samples()).words) == spoken(name).words


@pytest.mark.parametrize("switches", [[], ["--no-warmup"]])
def test_the_first_client_is_understood_warm_or_not(tmp_path: Path, switches: list[str]) -> None:
    with serving(tmp_path, *switches) as server:
        heard = hear(server, spoken("digits").samples())
    assert texts(heard.words) == spoken("digits").words


def test_subtitles(embedded: Worker, tmp_path: Path) -> None:
    recording = spoken("commands")
    options = ["--url", embedded.url, "--key", KEY, "--format", "srt"]
    ended = cli.run("transcribe", recording.path, *options, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    cues = re.findall(
        r"(\d+)\n(\d\d):(\d\d):(\d\d),(\d{3}) --> (\d\d):(\d\d):(\d\d),(\d{3})\n(.+?)(?:\n\n|\n?$)",
        ended.stdout,
        re.DOTALL,
    )
    assert " ".join(cue[9] for cue in cues).split() == list(recording.words)
    times = [
        [int(h) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000 for h, m, s, ms in (c[1:5], c[5:9])]
        for c in cues
    ]
    assert all(begin < end for begin, end in times)
    assert times[0][0] == pytest.approx(recording.starts_s[0], abs=2 * TIMES_OFF_BY_S)
    assert times[-1][1] == pytest.approx(recording.ends_s[-1], abs=2 * TIMES_OFF_BY_S)


def test_silence_and_noise_are_no_words(embedded: Worker) -> None:
    dice = np.random.default_rng(1)
    hiss = 0.03 * dice.standard_normal(20 * SAMPLE_RATE_HZ).astype(np.float32)
    assert hear(embedded, np.zeros(10 * SAMPLE_RATE_HZ, np.float32)).words == ()
    assert hear(embedded, hiss).words == ()
