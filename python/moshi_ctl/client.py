"""A client of the speech-to-text protocol: any server that speaks it, ours or Kyutai's."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final
from urllib.parse import urlsplit

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidURI,
)

from moshi_ctl import addresses, audio, client_errors, protocol
from moshi_ctl.addresses import DEFAULT_URL
from moshi_ctl.client_errors import OPEN_TIMEOUT_S
from moshi_ctl.errors import ClientError
from moshi_ctl.keys import is_loopback
from moshi_ctl.protocol import (
    FRAME_RATE_HZ,
    FRAME_SAMPLES,
    SAMPLE_RATE_HZ,
    EndWord,
    Failure,
    Marker,
    Ready,
    Samples,
    Step,
    Word,
)

LEAD_IN_S: Final = 1.0
"""Silence before the audio. The 2.6B model was trained with some; the others do not mind."""

_KEY_HEADER: Final = "kyutai-api-key"
_PING_INTERVAL_S: Final = 20.0
# A server that is busy with what we sent reads our ping only when it gets there.
_PING_TIMEOUT_S: Final = 120.0
# More than the longest delay of a published model (32 frames), so that one marker needs one tail.
_TAIL_S: Final = 4.0
_TAIL_EVERY_S: Final = 1.0
_FINISH_TIMEOUT_S: Final = 5.0

SpeechEvent = Word | EndWord | Step
"""What is heard in audio."""

AsrEvent = SpeechEvent | Marker
"""What a session reports."""


class AsrClient:
    """One session with a speech-to-text server.

    Use it as an asynchronous context manager, send audio and markers, and iterate over it for
    words, word ends, steps and markers, from one task or from two:

        async with AsrClient("ws://127.0.0.1:8080", key="my-secret") as client:
            await client.send_audio(samples)
            async for event in client:
                ...
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, key: str | None = None, ca: Path | str | None = None
    ) -> None:
        """Prepares a session; nothing is sent yet.

        Args:
            url: The server's address; without a path, `DEFAULT_PATH` is taken.
            key: The API key, for servers that ask for one.
            ca: PEM file of the certificates to trust, instead of the system's.

        Raises:
            ClientError: When `url` is no WebSocket address.
            UsageError: When `ca` cannot be used, or `url` is not encrypted.
        """
        self.url = addresses.complete(url)
        # What errors show: a key may be in the query.
        self.place = self.url.partition("?")[0]
        self._trusted = addresses.trust(self.url, ca)
        self._key = key
        self._connection: ClientConnection | None = None

    async def __aenter__(self) -> AsrClient:
        """Connects and waits until the server has a place for this session.

        Raises:
            NoFreeChannelsError: When it serves as many streams as it can.
            ClientError: When it cannot be reached or refuses.
        """
        host = urlsplit(self.url).hostname or ""
        try:
            self._connection = await connect(
                self.url,
                additional_headers={_KEY_HEADER: self._key} if self._key else None,
                # Noise does not compress, and the server would pay for trying.
                compression=None,
                open_timeout=OPEN_TIMEOUT_S,
                ping_interval=_PING_INTERVAL_S,
                ping_timeout=_PING_TIMEOUT_S,
                # With a limit, close() would hang while unread messages keep the queue full.
                max_queue=None,
                proxy=None if is_loopback(host) else True,
                ssl=self._trusted or self.url.startswith("wss://") or None,
            )
        except (OSError, InvalidHandshake, InvalidURI, ValueError) as error:
            raise client_errors.refused(self.place, error, has_key=self._key is not None) from error
        try:
            await asyncio.wait_for(self._wait_until_ready(), OPEN_TIMEOUT_S)
        except BaseException as error:
            await self._connection.close()
            if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
                raise ClientError(
                    f"{self.place}: the server accepted the connection but was not ready within "
                    f"{OPEN_TIMEOUT_S:.0f} s",
                    hint="see the server's log; it may be overloaded",
                ) from error
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._open_connection().close()

    async def send_audio(self, samples: Samples) -> None:
        """Sends mono audio at 24 kHz, any number of samples; waits while the server is behind.

        Raises:
            ClientError: When the session has ended.
        """
        await self._send(protocol.encode_audio(samples))

    async def send_marker(self, marker_id: int) -> None:
        """Asks to be told when everything sent so far has been transcribed.

        The model answers after its delay, so it needs more audio, silence for example.

        Raises:
            ClientError: When the session has ended.
        """
        await self._send(protocol.encode_marker(marker_id))

    async def __aiter__(self) -> AsyncIterator[AsrEvent]:
        """What the server reports, until it closes the session in good order.

        Raises:
            ClientError: When the server reports an error or the session breaks off.
        """
        async for event in self._events():
            if not isinstance(event, Ready):
                yield event

    async def _wait_until_ready(self) -> None:
        async for event in self._events():
            if isinstance(event, Ready):
                return
        raise ClientError(
            f"{self.place}: the server closed the connection before it was ready",
            hint="see the server's log",
        )

    async def _events(self) -> AsyncIterator[AsrEvent | Ready]:
        connection = self._open_connection()
        while True:
            try:
                data = await connection.recv()
            except ConnectionClosed as error:
                if client_errors.ended_well(error):
                    return
                raise client_errors.broken_off(self.place, error) from error
            try:
                event = protocol.decode(data)
            except protocol.MalformedMessageError as error:
                raise ClientError(
                    f"{self.place}: {error}",
                    hint="check that the URL is that of a speech-to-text module",
                ) from error
            if isinstance(event, Failure):
                raise client_errors.reported(self.place, event)
            if event is not None:
                yield event

    async def _send(self, data: bytes) -> None:
        try:
            await self._open_connection().send(data)
        except ConnectionClosed as error:
            raise client_errors.broken_off(self.place, error) from error

    def _open_connection(self) -> ClientConnection:
        if self._connection is None:
            raise ClientError(
                "the session is not open", hint="use AsrClient as an asynchronous context manager"
            )
        return self._connection


@dataclass(frozen=True)
class Transcript:
    """What a server heard in a piece of audio.

    Attributes:
        words: The words in order.
        duration_s: The audio's length.
    """

    words: tuple[Word, ...]
    duration_s: float

    @property
    def text(self) -> str:
        """The words with blanks between."""
        return " ".join(word.text.strip() for word in self.words)


async def transcribe_file(
    path: Path | str,
    url: str = DEFAULT_URL,
    *,
    key: str | None = None,
    ca: Path | str | None = None,
    lead_in_s: float = LEAD_IN_S,
    on_word: Callable[[Word], None] | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Transcript:
    """Transcribes an audio file as fast as the server takes it.

    Args:
        path: WAV, MP3, FLAC or Ogg, any rate and number of channels.
        url: The server's address.
        key: The API key, for servers that ask for one.
        ca: PEM file of the certificates to trust, instead of the system's.
        lead_in_s: Silence sent first; times are those of the file nevertheless.
        on_word: Called with each word when its beginning is known.
        on_progress: Called with the seconds of the file that the server has dealt with.

    Raises:
        AudioError: When the file cannot be read.
        NoFreeChannelsError: When the server serves as many streams as it can.
        ClientError: When the server cannot be reached, refuses, or the session breaks off.
    """
    return await transcribe(
        audio.blocks(Path(path)),
        url,
        key=key,
        ca=ca,
        lead_in_s=lead_in_s,
        on_word=on_word,
        on_progress=on_progress,
    )


async def transcribe(
    blocks: Iterable[Samples],
    url: str = DEFAULT_URL,
    *,
    key: str | None = None,
    ca: Path | str | None = None,
    lead_in_s: float = LEAD_IN_S,
    on_word: Callable[[Word], None] | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Transcript:
    """Transcribes audio that comes in blocks of samples; see `transcribe_file`."""
    notes = _Notes(on_word, on_progress)
    async with contextlib.aclosing(audio.in_background(blocks)) as source:
        # Nobody should wait for a place on the server only to learn that the file is unreadable.
        first = await anext(source, None)
        async with AsrClient(url, key=key, ca=ca) as client:
            session = _Session(client, lead_in_s, on_event=notes.add, on_sent=notes.count)
            await session.complete(first, source)
    return Transcript(tuple(notes.words), notes.sent_s)


async def listen(
    source: AsyncIterable[Samples],
    url: str = DEFAULT_URL,
    *,
    key: str | None = None,
    ca: Path | str | None = None,
    lead_in_s: float = LEAD_IN_S,
) -> AsyncGenerator[SpeechEvent, None]:
    """Transcribes audio while it is spoken, for as long as it comes.

    What `source` yields is sent at once. When it ends, what it said last is transcribed, and then
    this ends too:

        async for event in listen(microphone.samples(), key="my-secret"):
            match event:
                case Word(text=text, start_time=start_time):
                    print(f"{start_time:.2f} {text}")

    Whoever leaves that loop early closes the session with `contextlib.aclosing`.

    Args:
        source: Mono audio at 24 kHz in blocks of any length, as they come: from a microphone
            (`moshi_ctl.microphone`), a call, another program. It is asked for the first block when
            the server has a place.
        url: The server's address.
        key: The API key, for servers that ask for one.
        ca: PEM file of the certificates to trust, instead of the system's.
        lead_in_s: Silence sent first; times are those of the source nevertheless.

    Yields:
        Words, their ends, and a step for each frame of the source that the model has taken, which
        `step_idx` counts from 0.

    Raises:
        NoFreeChannelsError: When the server serves as many streams as it can.
        ClientError: When the server cannot be reached, refuses, or the session breaks off.
    """
    events: asyncio.Queue[SpeechEvent | None] = asyncio.Queue()
    async with AsrClient(url, key=key, ca=ca) as client:
        session = _Session(client, lead_in_s, on_event=events.put_nowait)
        task = asyncio.create_task(session.complete(None, aiter(source)))
        task.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                if not isinstance(event, Step) or event.step_idx >= 0:
                    yield event
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class _Session:
    """A session from its first sample to the answer to its last: one task sends, one receives."""

    def __init__(
        self,
        client: AsrClient,
        lead_in_s: float,
        *,
        on_event: Callable[[SpeechEvent], None],
        on_sent: Callable[[int], None] | None = None,
    ) -> None:
        """Prepares it.

        Args:
            client: Whose session it is; open.
            lead_in_s: Silence sent first.
            on_event: Called with what the server reports, in times of the source; a step's index is
                that of the frame, and below 0 in the silence before.
            on_sent: Called with how many samples of the source were sent just now.
        """
        # Whole frames, so that words keep their place on the model's grid.
        self._lead_in_frames = round(lead_in_s * FRAME_RATE_HZ)
        self._client = client
        self._on_event = on_event
        self._on_sent = on_sent

    async def complete(self, first: Samples | None, rest: AsyncIterator[Samples]) -> None:
        sender = asyncio.create_task(self._send(first, rest))
        receiver = asyncio.create_task(self._receive())
        try:
            await asyncio.wait({sender, receiver}, return_when=asyncio.FIRST_COMPLETED)
            if not receiver.done():
                self._raise_unless_client_error(sender)
                # The server ended the session; what it said last is on its way to the receiver.
                await asyncio.wait({receiver}, timeout=_FINISH_TIMEOUT_S)
            if not receiver.done():
                sender.result()
            receiver.result()
        finally:
            sender.cancel()
            receiver.cancel()
            await asyncio.gather(sender, receiver, return_exceptions=True)

    @staticmethod
    def _raise_unless_client_error(sender: asyncio.Task[None]) -> None:
        if not isinstance(sender.exception(), ClientError):
            sender.result()

    async def _send(self, first: Samples | None, rest: AsyncIterator[Samples]) -> None:
        client = self._client
        if self._lead_in_frames:
            await client.send_audio(_silence(self._lead_in_frames * FRAME_SAMPLES))
        sent_samples = 0
        block = await anext(rest, None) if first is None else first
        while block is not None:
            await client.send_audio(block)
            sent_samples += len(block)
            if self._on_sent:
                self._on_sent(len(block))
            block = await anext(rest, None)
        await client.send_audio(_silence(-sent_samples % FRAME_SAMPLES))
        await client.send_marker(0)
        await client.send_audio(_silence(round(_TAIL_S * SAMPLE_RATE_HZ)))
        while True:
            await asyncio.sleep(_TAIL_EVERY_S)
            await client.send_audio(_silence(round(_TAIL_EVERY_S * SAMPLE_RATE_HZ)))

    async def _receive(self) -> None:
        # Counted here: the step_idx of some servers goes on from one session to the next.
        frames = itertools.count(-self._lead_in_frames)
        async for event in self._client:
            match event:
                case Word():
                    start_time = self._in_source(event.start_time)
                    self._on_event(replace(event, start_time=start_time))
                case EndWord():
                    self._on_event(EndWord(self._in_source(event.stop_time)))
                case Step():
                    self._on_event(replace(event, step_idx=next(frames)))
                case Marker():
                    return
        raise ClientError(
            f"{self._client.place}: the server closed the session before all was transcribed",
            hint="it may be shutting down; try again, or see its log",
        )

    def _in_source(self, session_time_s: float) -> float:
        return max(0.0, round(session_time_s - self._lead_in_frames / FRAME_RATE_HZ, 3))


class _Notes:
    """What a transcript is made of, as it comes.

    Attributes:
        words: The words so far.
    """

    def __init__(
        self,
        on_word: Callable[[Word], None] | None,
        on_progress: Callable[[float], None] | None,
    ) -> None:
        self.words: list[Word] = []
        self._on_word = on_word
        self._on_progress = on_progress
        self._sent_samples = 0
        self._has_steps = False

    @property
    def sent_s(self) -> float:
        """How much audio was sent."""
        return self._sent_samples / SAMPLE_RATE_HZ

    def add(self, event: SpeechEvent) -> None:
        """Notes what the server reports."""
        match event:
            case Word():
                self.words.append(event)
                if self._on_word:
                    self._on_word(event)
            case EndWord() if self.words:
                self.words[-1] = replace(self.words[-1], stop_time=event.stop_time)
            case Step():
                self._has_steps = True
                self._report_progress(max(0, event.step_idx + 1) / FRAME_RATE_HZ)

    def count(self, samples: int) -> None:
        """Notes how much was sent."""
        self._sent_samples += samples
        if not self._has_steps:
            # A server without semantic VAD reports no steps; what it took is all we know.
            self._report_progress(self.sent_s)

    def _report_progress(self, done_s: float) -> None:
        if self._on_progress:
            self._on_progress(min(done_s, self.sent_s))


def _silence(samples: int) -> Samples:
    return np.zeros(samples, dtype=np.float32)
