"""Who sends faster than a model listens is slowed down; who does not read is cut off."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count

import pytest

from chaos.clean_streams import TAIL, FreshServers, Heard, clean_streams, minutes_of_speech, say
from chaos.conftest import Start
from chaos.processes import resident_bytes
from chaos.raw_session import LAST_MARKER, ending, join
from chaos.raw_websocket import Frame, RawWebSocket
from moshi_ctl.protocol import (
    FRAME_SAMPLES,
    SAMPLE_RATE_HZ,
    Marker,
    Samples,
    encode_audio,
    encode_marker,
)
from support import exposition
from support.exposition import ended
from support.waiting import wait_until
from support.worker import Worker

MIB = 1 << 20

MINUTES = [5.0, pytest.param(60.0, marks=pytest.mark.soak)]
AUDIO_AHEAD_S = 20
LANE_BYTES = AUDIO_AHEAD_S * SAMPLE_RATE_HZ * 4
# What an allocator keeps for later, and what the kernel has not taken back yet.
SLACK_BYTES = 12 * MIB
DEAF = 1
NOT_READING_S = 1


class MostMemory:
    """Looks at a worker's memory now and again; use it as a context manager.

    Attributes:
        bytes: The most that was seen.
    """

    def __init__(self, server: Worker) -> None:
        self.bytes = 0
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> MostMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            self.bytes = max(self.bytes, resident_bytes(self._server))
            if self._over.wait(0.02):
                return


@pytest.mark.parametrize("minutes", MINUTES)
def test_audio_far_ahead_of_real_time_is_slowed_down(
    start: Start, fresh: FreshServers, audio: Samples, expected: Heard, minutes: float
) -> None:
    samples = minutes_of_speech(minutes)
    assert samples.nbytes > 2 * SLACK_BYTES, "too little to show anything"
    with start(audio_ahead_s=AUDIO_AHEAD_S) as server:
        with clean_streams(server.url, audio, expected, count=3):
            pass
        before = resident_bytes(server)
        with clean_streams(server.url, audio, expected) as streams, MostMemory(server) as most:
            sessions = streams.sessions
            said = say(server.url, samples, chunk=SAMPLE_RATE_HZ)
            assert streams.sessions > sessions
        wait_until(lambda: exposition.samples(server)["moshi_backlog_seconds"] == 0)
    assert said == fresh.hear(samples)
    # The lane was full, or this shows nothing; and it was never fuller than that.
    assert AUDIO_AHEAD_S / 2 < said.most_waiting / SAMPLE_RATE_HZ <= AUDIO_AHEAD_S
    assert most.bytes - before < LANE_BYTES + SLACK_BYTES


def talkative(audio: Samples) -> bytes:
    """A frame of audio, and many questions."""
    frame = Frame(encode_audio(audio[:FRAME_SAMPLES])).encode()
    return frame + Frame(encode_marker(1)).encode() * 200


def test_who_never_reads_is_cut_off(start: Start, audio: Samples, expected: Heard) -> None:
    said = talkative(audio)

    def speak_until_cut_off(session: RawWebSocket) -> None:
        for _ in count():
            session.socket.sendall(said)

    def have_ended(server: Worker, end: str, number: int) -> bool:
        return ended(server, end) == number

    with (
        start(not_reading_s=NOT_READING_S, audio_ahead_s=AUDIO_AHEAD_S) as server,
        clean_streams(server.url, audio, expected),
    ):
        before = resident_bytes(server)
        for number in range(DEAF):
            with (
                MostMemory(server) as most,
                join(server.port, receive_buffer_bytes=1) as session,
                pytest.raises(ConnectionError),
            ):
                # Not a timeout: nothing is taken for a while, and then there is nobody to take it.
                speak_until_cut_off(session)
            wait_until(partial(have_ended, server, "not_reading", number + 1))
            assert most.bytes - before < LANE_BYTES + SLACK_BYTES


# So many that what is said about them, about 6 MB, takes long to read.
FRAMES = 1_500
SIP_MESSAGES = 500
SIP_S = 0.05


def test_who_reads_slowly_is_kept(start: Start, audio: Samples) -> None:
    with (
        start(not_reading_s=NOT_READING_S, audio_ahead_s=AUDIO_AHEAD_S) as server,
        join(server.port, receive_buffer_bytes=20_000) as session,
        ThreadPoolExecutor(1) as pool,
    ):
        last = [encode_marker(LAST_MARKER), encode_audio(TAIL)]
        said = talkative(audio) * FRAMES + b"".join(Frame(message).encode() for message in last)
        speaking = pool.submit(session.socket.sendall, said)
        end = time.monotonic() + 4 * NOT_READING_S
        while time.monotonic() < end:
            for _ in range(SIP_MESSAGES):
                assert session.next_message() is not None
            time.sleep(SIP_S)
        assert not speaking.done(), "kernels hold it all: the server never had to wait"
        heard = ending(session).events
        assert heard[-1] == Marker(LAST_MARKER), heard[-1]
