"""Clients that speak in real time, and one that sends as fast as it can."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from moshi_ctl.client import AsrClient
from moshi_ctl.protocol import FRAME_S, FRAME_SAMPLES, Step, encode_audio
from support import speech
from support.vanishing import Client, binary_frame

ANSWERS_S = 2.0
_MESSAGE_S = 1.0


@dataclass
class Paced:
    """What a client that speaks in real time saw.

    Attributes:
        sent_frames: Frames it has sent.
        taken_frames: Frames the model has taken.
        times_s: When each step came back, in seconds since the start.
        lags_s: How much audio was on its way then.
        answers_s: How long after its frame was sent.
    """

    sent_frames: int = 0
    taken_frames: int = 0
    times_s: list[float] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)
    answers_s: list[float] = field(default_factory=list)
    _sent_s: list[float] = field(default_factory=list)

    async def speak(self, url: str, key: str, seconds: float) -> None:
        """Sends a frame every 80 ms, for so long."""
        samples = speech.speech()
        frames = samples[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES]
        frames = frames.reshape(-1, FRAME_SAMPLES)
        async with AsrClient(url, key=key) as client:
            start_s = time.monotonic()
            listening = asyncio.create_task(self._listen(client, start_s))
            try:
                for number in range(round(seconds / FRAME_S)):
                    due_s = start_s + number * FRAME_S
                    await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                    self.sent_frames += 1
                    self._sent_s.append(time.monotonic())
                    await client.send_audio(frames[number % len(frames)])
                    if listening.done():
                        listening.result()
                await asyncio.sleep(ANSWERS_S)
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)

    async def _listen(self, client: AsrClient, start_s: float) -> None:
        async for event in client:
            if isinstance(event, Step):
                now_s = time.monotonic()
                self.answers_s.append(now_s - self._sent_s[self.taken_frames])
                self.taken_frames += 1
                self.times_s.append(now_s - start_s)
                self.lags_s.append((self.sent_frames - self.taken_frames) * FRAME_S)


@contextmanager
def blasting(port: int, key: str) -> Iterator[Blast]:
    """A client in threads of its own that sends as fast as the server takes it."""
    blast = Blast(port, key)
    try:
        yield blast
    finally:
        blast.end()


class Blast:
    """It reads all answers and looks at none.

    Attributes:
        sent_s: Seconds of audio that the server has taken from it.
    """

    def __init__(self, port: int, key: str) -> None:
        client = Client(port, key)
        client.go_to("ready")
        self.sent_s = 0.0
        self._socket = client.socket
        self._socket.settimeout(None)
        pcm = speech.speech(_MESSAGE_S)
        self._message = binary_frame(encode_audio(pcm))
        self._ended = False
        self._threads = [
            threading.Thread(target=run, daemon=True) for run in (self._send, self._receive)
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._ended = True
        self._socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._socket.close()

    def is_alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def _send(self) -> None:
        try:
            while not self._ended:
                self._socket.sendall(self._message)
                self.sent_s += _MESSAGE_S
        except OSError:
            return

    def _receive(self) -> None:
        try:
            while self._socket.recv(1 << 16):
                pass
        except OSError:
            return
