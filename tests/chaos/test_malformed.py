"""Malformed bytes end their own session, with an explanation, and nobody else notices."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos import malformed
from chaos.clean_streams import CleanStreams, Heard, clean_streams
from chaos.raw_session import (
    INTERNAL_ERROR,
    INVALID_DATA,
    LAST_MARKER,
    POLICY,
    PROTOCOL_ERROR,
    TOO_BIG,
    UNSUPPORTED,
    Outcome,
    assert_explained,
    encode,
    ending,
    join,
    outcome,
)
from moshi_ctl.addresses import DEFAULT_PATH
from moshi_ctl.protocol import Marker, Samples
from support import speech
from support.http import request
from support.worker import KEY, Worker

SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 50))]

REFUSED = (UNSUPPORTED, INVALID_DATA, POLICY, TOO_BIG, INTERNAL_ERROR)

MESSAGES = 150
STREAMS = 100
FRAMES = 150
FILES = 40
CUT_BYTES = 40


@pytest.fixture(name="beside", autouse=True)
def _beside(crowded: Worker, audio: Samples, expected: Heard) -> Iterator[CleanStreams]:
    with clean_streams(crowded.url, audio, expected) as streams:
        yield streams


def heard_or_explained(end: Outcome, sent: bytes) -> None:
    """Whatever it was, the session went on or was told why it could not."""
    if end.events[-1:] == [Marker(LAST_MARKER)]:
        assert not end.errors, sent
    else:
        assert_explained(end, *REFUSED)


def tell(server: Worker, *messages: bytes) -> Outcome:
    with join(server.port) as session:
        for message in messages:
            session.send_message(message)
        return outcome(session)


@pytest.mark.parametrize("kind", ["HOLLOW", "DEEP", "ODD"])
def test_messages_that_are_none_are_explained(crowded: Worker, kind: str) -> None:
    explained = 0
    for message in getattr(malformed, kind):
        end = tell(crowded, message)
        heard_or_explained(end, message[:100])
        explained += len(end.errors)
    # Most of them cannot be anything but wrong.
    assert explained > 0.7 * len(getattr(malformed, kind))


@pytest.mark.parametrize("seed", SEEDS)
def test_messages_gone_wrong(crowded: Worker, seed: int) -> None:
    explained = 0
    for message in malformed.messages(seed, MESSAGES):
        end = tell(crowded, message)
        heard_or_explained(end, message)
        explained += len(end.errors)
    assert explained > MESSAGES // 4


@pytest.fixture(name="opus", scope="module")
def _opus(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("opus") / "speech.ogg"
    return speech.write(path, speech.speech(1.0), 48_000, subtype="OPUS").read_bytes()


def test_the_stream_that_goes_wrong_below_is_right(crowded: Worker, opus: bytes) -> None:
    end = tell(crowded, encode("OggOpus", data=opus))
    assert not end.errors
    assert len(end.events) > 20


@pytest.mark.parametrize("seed", SEEDS)
def test_ogg_opus_gone_wrong(crowded: Worker, opus: bytes, seed: int) -> None:
    dice = random.Random(seed)
    explained = 0
    for stream in malformed.ogg_streams(seed, STREAMS, opus):
        cut = dice.randrange(len(stream) + 1)
        pieces = [stream[:cut], stream[cut:]]
        end = tell(crowded, *(encode("OggOpus", data=piece) for piece in pieces))
        heard_or_explained(end, stream)
        explained += len(end.errors)
    assert explained > STREAMS // 8


@pytest.mark.parametrize("seed", SEEDS)
def test_frames_gone_wrong(crowded: Worker, seed: int) -> None:
    explained = 0
    for stream in malformed.frames(seed, FRAMES):
        with join(crowded.port) as session:
            session.socket.sendall(stream)
            # What is cut off in the middle would wait for its rest.
            session.fin()
            end = ending(session)
        if end.errors:
            assert_explained(end, PROTOCOL_ERROR, *REFUSED)
            explained += 1
    assert explained > FRAMES // 20


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.flac", "a.ogg", "opus.ogg"])
@pytest.mark.parametrize("seed", SEEDS)
def test_files_gone_wrong(crowded: Worker, tmp_path: Path, seed: int, name: str) -> None:
    subtype = "OPUS" if name.startswith("opus") else ""
    rate_hz = 48_000 if subtype else 24_000
    path = speech.write(tmp_path / name, speech.speech(1.0), rate_hz, subtype=subtype)
    right = path.read_bytes()
    dice = random.Random(seed)
    # Of MP3, nearly anything can be decoded; a frame that is cut off cannot.
    bodies = [right[:CUT_BYTES]]
    for _ in range(FILES):
        # Headers are at the beginning.
        where = dice.choice([64, len(right)])
        bodies.append(malformed.mutated(right[:where], dice) + right[where:])
    statuses = []
    for body in bodies:
        answer = request(crowded.port, "POST", DEFAULT_PATH, body, {"kyutai-api-key": KEY})
        assert answer.status in {200, 400, 415}, answer.body
        assert answer.body
        statuses.append(answer.status)
    assert statuses[0] != 200
