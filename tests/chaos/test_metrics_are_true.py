"""Metrics say what clients counted themselves, also when everything goes wrong at once."""

from __future__ import annotations

import contextlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from chaos import raw_websocket
from chaos.clean_streams import DELAY_FRAMES
from chaos.conftest import Start
from chaos.processes import lanes_in_use
from chaos.raw_session import AUTHORIZED, encode
from chaos.raw_websocket import RawWebSocket, RefusedError, close_frame
from moshi_ctl import protocol
from moshi_ctl.addresses import DEFAULT_PATH
from moshi_ctl.protocol import FRAME_SAMPLES, Event, Failure, Marker, Ready, Step, Word
from support import exposition, speech
from support.http import Answer, request
from support.waiting import wait_until
from support.worker import KEY, Worker

SEEDS = [30, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(300, 330))]
LANES = 4
CLIENTS = 8
"""More than lanes, so that some are refused."""
DEEDS = 40
POSTS = 5
NO_AUDIO = b"no audio at all"
NONSENSE = [b"", b"\xc1", encode("Audio"), encode("Audio", pcm="text"), encode("Dance")]

Books = Counter[str]
"""What was counted: metrics by their names, with the labels that matter behind a colon."""


class Client:
    """Does one thing after another, and keeps the books."""

    def __init__(self, server: Worker, seed: int) -> None:
        self.books = Books()
        self._port = server.port
        self._dice = random.Random(seed)

    def run(self) -> Books:
        deeds = (
            *(self.listen, self.listen, self.say_nonsense, self.say_nan, self.vanish),
            *(self.have_no_key, self.shake_hands_wrongly, self.post_nonsense),
        )
        for _ in range(DEEDS):
            self._dice.choice(deeds)()
        return self.books

    def listen(self) -> None:
        """A session whose last word is said when its last frame was."""
        with self._session("completed") as session:
            if session is None:
                return
            samples = self._dice.randrange(1, 40_000)
            frames = -(-samples // FRAME_SAMPLES) + DELAY_FRAMES
            pcm = np.resize(speech.speech(), frames * FRAME_SAMPLES)
            self._send(session, protocol.encode_audio(pcm[:samples]))
            self._send(session, protocol.encode_marker(1))
            self._send(session, protocol.encode_audio(pcm[samples:]))
            steps = 0
            while (event := self._receive(session)) != Marker(1):
                steps += isinstance(event, Step)
            assert steps == frames
            self.books["moshi_frames_total"] += frames
            session.send(close_frame(1000))
            session.until_closed()

    def say_nonsense(self) -> None:
        with self._session("invalid") as session:
            if session is not None:
                self._send(session, self._dice.choice(NONSENSE))
                while self._receive(session) is not None:
                    pass

    def say_nan(self) -> None:
        with self._session("bad_audio") as session:
            if session is not None:
                self._send(session, encode("Audio", pcm=[float("nan")] * FRAME_SAMPLES))
                self.books["moshi_frames_total"] += 1
                while self._receive(session) is not None:
                    pass

    def vanish(self) -> None:
        with self._session("lost") as session:
            if session is None:
                return
            if self._dice.random() < 0.5:
                # What is on its way when a connection is reset may not arrive.
                session.reset()
            else:
                self._send(session, protocol.encode_audio(np.zeros(100, dtype=np.float32)))

    def have_no_key(self) -> None:
        with pytest.raises(RefusedError):
            raw_websocket.connect(self._port)
        self.books["moshi_refusals_total:unauthorized"] += 1

    def shake_hands_wrongly(self) -> None:
        with pytest.raises(RefusedError):
            raw_websocket.connect(self._port, headers=AUTHORIZED, without=["Sec-WebSocket-Key"])
        self.books["moshi_refusals_total:bad_request"] += 1

    def post_nonsense(self) -> None:
        answer = post(self._port, NO_AUDIO)
        assert answer.status in {415, 503}
        if answer.status == 503:
            self.books["moshi_refusals_total:full"] += 1
        else:
            self.books["moshi_refusals_total:bad_audio"] += 1
            self.books["moshi_received_bytes_total"] += len(NO_AUDIO)

    @contextlib.contextmanager
    def _session(self, end: str) -> Iterator[RawWebSocket | None]:
        """A session that will end that way; none where there is no lane for it."""
        with raw_websocket.connect(self._port, headers=AUTHORIZED) as session:
            self.books["asr_connect_total"] += 1
            message = session.next_message()
            assert message is not None
            self.books["moshi_sent_bytes_total"] += len(message)
            event = protocol.decode(message)
            if event == Failure("no free channels"):
                self.books["moshi_refusals_total:full"] += 1
                session.until_closed()
                yield None
                return
            assert event == Ready()
            self.books["moshi_sessions_total:stream"] += 1
            yield session
            self.books[f"moshi_sessions_ended_total:{end}"] += 1

    def _send(self, session: RawWebSocket, message: bytes) -> None:
        session.send_message(message)
        self.books["moshi_received_bytes_total"] += len(message)

    def _receive(self, session: RawWebSocket) -> Event | None:
        message = session.next_message()
        if message is None:
            return None
        self.books["moshi_sent_bytes_total"] += len(message)
        event = protocol.decode(message)
        self.books["moshi_words_total"] += isinstance(event, Word)
        return event


def post(port: int, body: bytes) -> Answer:
    return request(port, "POST", DEFAULT_PATH, body, {"kyutai-api-key": KEY})


def on_the_server(server: Worker) -> Books:
    """The server's books: the metrics that clients can count too, where they are not 0."""
    books = Books()
    for name in ("frames", "words", "received_bytes", "sent_bytes"):
        books[f"moshi_{name}_total"] += round(exposition.sums(server)[f"moshi_{name}_total"])
    books["asr_connect_total"] = round(exposition.sums(server)["asr_connect_total"])
    for name, label in (("sessions", "kind"), ("sessions_ended", "end"), ("refusals", "reason")):
        metric = f"moshi_{name}_total"
        for value in exposition.values_of(server, metric, label):
            books[f"{metric}:{value}"] = round(exposition.sums(server, **{label: value})[metric])
    return +books


@pytest.mark.parametrize("seed", SEEDS)
def test_they_are_what_clients_counted(start: Start, seed: int) -> None:
    with start(lanes=LANES) as server:
        clients = [Client(server, seed + 1000 * number) for number in range(CLIENTS)]
        with ThreadPoolExecutor(CLIENTS) as pool:
            counted = sum(pool.map(Client.run, clients), Books())
        wait_until(lambda: lanes_in_use(server) == 0)
        wait_until(lambda: exposition.samples(server)["moshi_backlog_seconds"] == 0)
        assert on_the_server(server) == +counted
        # Everything happened that was to happen.
        for event in ("sessions_ended_total:lost", "refusals_total:full", "words_total"):
            assert counted[f"moshi_{event}"], event
        observed = exposition.samples(server)
        # A frame that fails is no step of its session.
        steps = counted["moshi_frames_total"] - counted["moshi_sessions_ended_total:bad_audio"]
        assert observed["asr_connection_num_steps_sum"] == steps
        assert observed["asr_open_channels"] == 0

        before = on_the_server(server)
        answers = [post(server.port, speech.SPEECH.read_bytes()) for _ in range(POSTS)]
        posted = on_the_server(server) - before
        # How many frames of silence follow the last answer is the server's own business.
        assert posted.pop("moshi_frames_total") >= POSTS * 6 * 12
        said = [json.loads(answer.body) for answer in answers]
        assert posted == {
            "moshi_sessions_total:file": POSTS,
            "moshi_sessions_ended_total:completed": POSTS,
            "moshi_received_bytes_total": POSTS * speech.SPEECH.stat().st_size,
            "moshi_sent_bytes_total": sum(len(answer.body) for answer in answers),
            "moshi_words_total": sum(m["type"] == "Word" for messages in said for m in messages),
        }
