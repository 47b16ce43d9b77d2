"""An hour of audio as fast as it can be sent is held back, not held in memory: no word changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from moshi_ctl.client import AsrClient
from moshi_ctl.protocol import (
    FRAME_S,
    FRAME_SAMPLES,
    SAMPLE_RATE_HZ,
    EndWord,
    Marker,
    Step,
    Word,
    encode_audio,
)
from soak import amounts
from support import speech
from support.growth import Growth, Reading
from support.paced import Paced
from support.worker import KEY, Worker, worker

MESSAGE_S = 2.0
DIFFERENT = 30
# What a careful client has on its way at most.
AHEAD_FRAMES = 100
READINGS = 100
LEAST_WAITING_S = 10.0
TIMEOUT_S = 3_600.0
# An hour of it would be 345 MB; a lane may hold a minute, and so may a socket and its message.
MOST_BYTES = 32e6
MOST_BYTES_PER_S = 512.0

Heard = list[Word | EndWord]


class EncodedClient(AsrClient):
    """It encodes before, or it would be slower than the server."""

    async def send_encoded(self, data: bytes) -> None:
        await self._send(data)


@cache
def message(number: int) -> bytes:
    """Speech, not twice the same within a minute."""
    samples = np.roll(speech.speech(7.3), 12_370 * number)[: round(MESSAGE_S * SAMPLE_RATE_HZ)]
    return encode_audio(samples * np.float32(0.5 + 0.4 * np.sin(number)))


async def hear(
    url: str, pieces: int, ahead_frames: int | None, on_step: Callable[[Step], None]
) -> Heard:
    """One session of so many pieces, with no more than `ahead_frames` of them on their way."""
    heard: Heard = []
    taken = 0
    changed = asyncio.Event()

    async def listen(client: EncodedClient) -> None:
        nonlocal taken
        async for event in client:
            match event:
                case Word() | EndWord():
                    heard.append(event)
                case Step():
                    taken = event.step_idx
                    on_step(event)
                    changed.set()
                case Marker():
                    return
        raise AssertionError("closed before the marker")

    client = EncodedClient(url, key=KEY)
    async with client:
        listening = asyncio.create_task(listen(client))
        sent = 0
        for number in range(pieces):
            while ahead_frames is not None and sent / FRAME_SAMPLES - taken > ahead_frames:
                changed.clear()
                await asyncio.wait_for(changed.wait(), 30)
            await client.send_encoded(message(number % DIFFERENT))
            sent += round(MESSAGE_S * SAMPLE_RATE_HZ)
        await client.send_marker(1)
        await client.send_audio(np.zeros(SAMPLE_RATE_HZ, dtype=np.float32))
        await asyncio.wait_for(listening, TIMEOUT_S)
    return heard


class Watch:
    """Reads the process a hundred times while audio goes through it."""

    def __init__(self, server: Worker, pieces: int) -> None:
        self.readings = [Reading.of(server.process.pid, 0)]
        self.most_waiting_s = 0.0
        self._pid = server.process.pid
        self._every_frames = round(pieces * MESSAGE_S / FRAME_S / READINGS)

    def on_step(self, step: Step) -> None:
        self.most_waiting_s = max(self.most_waiting_s, step.buffered_pcm / SAMPLE_RATE_HZ)
        if step.step_idx % self._every_frames == 0:
            self.readings.append(Reading.of(self._pid, step.step_idx * FRAME_S))


@pytest.mark.soak
def test_an_hour_of_audio_at_full_speed(tiny_dir: Path) -> None:
    pieces = round(60 * amounts.AUDIO_MINUTES / MESSAGE_S)
    env = {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "MOSHI_API_KEY": KEY}
    with worker("tiny-random", cwd=tiny_dir, env=env) as server:
        expected = asyncio.run(hear(server.url, pieces, AHEAD_FRAMES, lambda _: None))
        assert len(expected) > pieces / 4
        watch = Watch(server, pieces)
        neighbour = Paced()

        async def both() -> Heard:
            speaking = asyncio.create_task(neighbour.speak(server.url, KEY, TIMEOUT_S))
            try:
                return await hear(server.url, pieces, None, watch.on_step)
            finally:
                speaking.cancel()
                await asyncio.gather(speaking, return_exceptions=True)

        heard = asyncio.run(both())
        assert heard == expected
        growth = Growth.of(watch.readings)
        before, *during = (reading.resident_bytes for reading in watch.readings)
        more = max(during) - before
        print(f"{growth}; {watch.most_waiting_s:.0f} s waited; at most {more / 1e6:.1f} MB more")
        assert watch.most_waiting_s > LEAST_WAITING_S, "nothing had to be held back"
        assert more <= MOST_BYTES
        assert growth.resident_bytes <= MOST_BYTES_PER_S
        # While this process was busy sending, the neighbour's own frames may have been late; none
        # of what it did send had to wait for the hour beside it.
        lags_s = sorted(neighbour.lags_s)
        assert len(lags_s) > 10
        assert lags_s[round(0.99 * len(lags_s)) - 1] <= 10 * FRAME_S
