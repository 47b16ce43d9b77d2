"""The clients of `paced_clients.py`: live streams, many to a process, at little cost."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from measuring import RECORDING

from moshi_ctl import audio, protocol
from moshi_ctl.client import AsrClient
from moshi_ctl.protocol import FRAME_RATE_HZ, FRAME_SAMPLES, Step

FRAME_S: Final = 1 / FRAME_RATE_HZ

# Clients connect within this before the first frame.
CONNECT_S = 2.0
# Steps on their way when the last frame was sent.
DRAIN_S = 1.0
# As in the engine's benchmarks: neighbours hear different things.
OFFSET_FRAMES = 29


@dataclass
class Stream:
    """What one client saw.

    Attributes:
        number: Which client.
        sent_frames: Frames sent.
        taken_frames: Frames the model took.
        lags: For every step that came back: seconds since the start, and how many seconds of audio
            were on their way then.
        answers_s: From sending a frame to its step, in seconds.
        late_s: How late each frame was sent, in seconds.
    """

    number: int
    sent_frames: int = 0
    taken_frames: int = 0
    lags: list[tuple[float, float]] = field(default_factory=list)
    answers_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)

    def answer_percentile_ms(self, percent: float) -> float:
        """What `percent` of 100 answers did not exceed, in milliseconds."""
        return float(1e3 * np.percentile(self.answers_s, percent))

    def late_percentile_ms(self, percent: float) -> float:
        """What `percent` of 100 delays in sending did not exceed, in milliseconds."""
        return float(1e3 * np.percentile(self.late_s, percent))

    def thinned(self) -> dict[str, Any]:
        """For the JSON results: the lag about once a second."""
        every = round(FRAME_RATE_HZ)
        return {
            "number": self.number,
            "sent_frames": self.sent_frames,
            "taken_frames": self.taken_frames,
            "answer_p50_ms": self.answer_percentile_ms(50),
            "answer_p99_ms": self.answer_percentile_ms(99),
            "late_p99_ms": self.late_percentile_ms(99),
            "time_s_and_lag_s": [[round(t, 2), round(s, 3)] for t, s in self.lags[::every]],
        }


@dataclass(frozen=True)
class ProcessRun:
    """What the clients of one process saw, and the processor time they took."""

    streams: list[Stream]
    cpu_s: float


class EncodedClient(AsrClient):
    """A client that sends messages encoded before."""

    async def send_encoded(self, message: bytes) -> None:
        """Sends a message; waits while the server is behind."""
        await self._send(message)


def run_streams(url: str, key: str, numbers: list[int], of: int, seconds: float) -> ProcessRun:
    """Runs the clients with these numbers, of so many in all, to their end."""
    samples = np.concatenate(list(audio.blocks(RECORDING)))
    whole = len(samples) // FRAME_SAMPLES
    frames = samples[: whole * FRAME_SAMPLES].reshape(whole, FRAME_SAMPLES)
    messages = [protocol.encode_audio(frame) for frame in frames]

    async def run_all() -> list[Stream]:
        start_s = time.monotonic() + CONNECT_S
        streams = (
            _run(url, key, Stream(number), messages, start_s + FRAME_S * number / of, seconds)
            for number in numbers
        )
        return list(await asyncio.gather(*streams))

    started_cpu_s = time.process_time()
    streams = asyncio.run(run_all())
    return ProcessRun(streams, time.process_time() - started_cpu_s)


async def _run(
    url: str, key: str, stream: Stream, messages: list[bytes], start_s: float, seconds: float
) -> Stream:
    sent_at_s: list[float] = []
    client = EncodedClient(url, key=key)
    async with client:
        receiver = asyncio.create_task(_receive(client, stream, sent_at_s, start_s))
        try:
            for frame in range(round(seconds * FRAME_RATE_HZ)):
                due_s = start_s + frame * FRAME_S
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                sent_at_s.append(time.monotonic())
                stream.late_s.append(sent_at_s[-1] - due_s)
                stream.sent_frames += 1
                message = messages[(frame + OFFSET_FRAMES * stream.number) % len(messages)]
                await client.send_encoded(message)
                if receiver.done():
                    # It ends before us only with an error.
                    receiver.result()
            await asyncio.sleep(DRAIN_S)
        finally:
            receiver.cancel()
            await asyncio.gather(receiver, return_exceptions=True)
    return stream


async def _receive(
    client: AsrClient, stream: Stream, sent_at_s: list[float], start_s: float
) -> None:
    async for event in client:
        if isinstance(event, Step):
            now_s = time.monotonic()
            stream.taken_frames = event.step_idx
            lag_s = (stream.sent_frames - stream.taken_frames) * FRAME_S
            stream.lags.append((now_s - start_s, lag_s))
            stream.answers_s.append(now_s - sent_at_s[stream.taken_frames - 1])
