"""Sessions that do nothing wrong, and what each of them hears, bit for bit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from moshi_ctl.client import AsrClient
from moshi_ctl.protocol import (
    FRAME_SAMPLES,
    SAMPLE_RATE_HZ,
    EndWord,
    Event,
    Marker,
    Samples,
    Step,
    Word,
)
from support import speech
from support.worker import KEY, worker

DELAY_FRAMES = 6
"""The tiny model's delay."""

TAIL = np.zeros(2 * DELAY_FRAMES * FRAME_SAMPLES, dtype=np.float32)
"""Silence after which everything before it is transcribed."""

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Heard:
    """What a session was told up to its last marker.

    Attributes:
        words: The words.
        ends: Where words end.
        prs: For each step the bytes of its probabilities, 32-bit floats, one per VAD head.
        most_waiting: The most samples that waited for their turn; two sessions that heard the same
            may differ in that.
    """

    words: tuple[Word, ...]
    ends: tuple[EndWord, ...]
    prs: tuple[bytes, ...]
    most_waiting: int = field(default=0, compare=False)


def heard(events: Sequence[Event]) -> Heard:
    """Those of a session's events that have to be equal for equal audio."""
    steps = [event for event in events if isinstance(event, Step)]
    return Heard(
        tuple(event for event in events if isinstance(event, Word)),
        tuple(event for event in events if isinstance(event, EndWord)),
        tuple(np.asarray(step.prs, dtype=np.float32).tobytes() for step in steps),
        max((step.buffered_pcm for step in steps), default=0),
    )


async def hear(
    url: str,
    samples: Samples,
    *,
    chunk: int = FRAME_SAMPLES,
    pause_s: float = 0.0,
    is_ready: threading.Semaphore | None = None,
) -> Heard:
    """What a session of its own hears; see `converse`.

    Args:
        url: The server's.
        samples: What is said.
        chunk: Samples in a message.
        pause_s: What passes between two messages.
        is_ready: Released when the session has a lane.
    """
    async with AsrClient(url, key=KEY) as asr:
        if is_ready is not None:
            is_ready.release()
        return await converse(asr, samples, chunk=chunk, pause_s=pause_s)


async def converse(
    asr: AsrClient, samples: Samples, *, chunk: int = FRAME_SAMPLES, pause_s: float = 0.0
) -> Heard:
    """What an open session hears up to the marker behind its last sample.

    Args:
        asr: The session.
        samples: What is said.
        chunk: Samples in a message.
        pause_s: What passes between two messages.
    """

    async def listen() -> list[Event]:
        events: list[Event] = []
        async for event in asr:
            events.append(event)
            if isinstance(event, Marker):
                return events
        raise AssertionError(f"closed before the marker, after {len(events)} events")

    listening = asyncio.create_task(listen())
    try:
        for start in range(0, len(samples), chunk):
            await asr.send_audio(samples[start : start + chunk])
            await asyncio.sleep(pause_s)
        await asr.send_marker(1)
        await asr.send_audio(TAIL)
        return heard(await asyncio.wait_for(listening, TIMEOUT_S))
    finally:
        listening.cancel()


def say(url: str, samples: Samples, *, chunk: int = FRAME_SAMPLES) -> Heard:
    """`hear`, for those who have nothing else to do."""
    return asyncio.run(hear(url, samples, chunk=chunk))


@dataclass
class FreshServers:
    """What a server hears that has just started, and hears nothing else.

    Attributes:
        tiny_dir: The model's folder.
    """

    tiny_dir: Path
    _known: dict[bytes, Heard] = field(default_factory=dict)

    def hear(self, samples: Samples) -> Heard:
        """What it hears; each audio gets a server of its own, once."""
        audio = samples.tobytes()
        if audio not in self._known:
            env = {"MOSHI_CTL_TINY_DIR": str(self.tiny_dir), "MOSHI_API_KEY": KEY}
            with worker("tiny-random", cwd=self.tiny_dir, env=env) as server:
                self._known[audio] = say(server.url, samples)
            # A comparison of two silences would show nothing.
            assert self._known[audio].words
            assert len(set(self._known[audio].prs)) > len(samples) // FRAME_SAMPLES // 2
        return self._known[audio]


@dataclass
class CleanStreams:
    """Sessions that run beside something, one after another in each stream.

    Attributes:
        sessions: How many were heard to their end.
    """

    sessions: int = 0
    _stop: bool = False

    async def run(
        self,
        url: str,
        samples: Samples,
        expected: Heard,
        count: int,
        pause_s: float,
        is_ready: threading.Semaphore,
    ) -> None:
        async def stream(place: int) -> None:
            # Not in step with each other.
            chunk = FRAME_SAMPLES - 97 * place
            first: threading.Semaphore | None = is_ready
            while first or not self._stop:
                said = await hear(url, samples, chunk=chunk, pause_s=pause_s, is_ready=first)
                first = None
                assert said == expected, "a clean stream heard something else"
                self.sessions += 1

        await asyncio.gather(*(stream(place) for place in range(count)))


@contextmanager
def clean_streams(
    url: str, samples: Samples, expected: Heard, *, count: int = 2, pause_s: float = 0.005
) -> Iterator[CleanStreams]:
    """Keeps clean streams going, and fails unless each of their sessions hears what it should.

    Everything that happens inside happens while all of them have a lane, except for moments
    between two sessions. The last sessions are heard to their end.

    Args:
        url: The server's.
        samples: What each session says.
        expected: What each session has to hear.
        count: How many streams there are; each needs a lane.
        pause_s: What passes between two frames of a session.
    """
    streams, is_ready, failures = CleanStreams(), threading.Semaphore(0), list[BaseException]()

    def run() -> None:
        try:
            asyncio.run(streams.run(url, samples, expected, count, pause_s, is_ready))
        except BaseException as error:  # noqa: BLE001 - raised where the streams are left
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        for _ in range(count):
            assert is_ready.acquire(timeout=TIMEOUT_S), f"no lane for a clean stream: {failures}"
        yield streams
    finally:
        streams._stop = True
        thread.join(TIMEOUT_S)
    assert not thread.is_alive(), "a clean stream does not end"
    if failures:
        raise failures[0]


SPEECH_S = 3.0


def speech_and_echo() -> Samples:
    """Some speech, then the same backwards and quieter: 6 s of which no two frames are equal."""
    samples = speech.speech(SPEECH_S)
    return np.concatenate([samples, 0.5 * samples[::-1]]).astype(np.float32)


def minutes_of_speech(minutes: float) -> Samples:
    """Speech of any length, in which nothing repeats itself exactly."""
    samples = speech.speech(60.0)
    wanted = round(minutes * 60 * SAMPLE_RATE_HZ)
    gains = np.linspace(0.3, 1.0, -(-wanted // len(samples)), dtype=np.float32)
    return np.concatenate([gain * samples for gain in gains])[:wanted]
