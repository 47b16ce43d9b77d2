"""A model that fails, hangs or is too slow: everybody is told, and nothing pretends to work."""

from __future__ import annotations

import contextlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chaos import raw_session, raw_websocket
from chaos.clean_streams import Heard, clean_streams, heard, minutes_of_speech, say
from chaos.conftest import Start
from chaos.processes import lanes_in_use
from chaos.raw_session import (
    AUTHORIZED,
    GOING_AWAY,
    INTERNAL_ERROR,
    TRY_AGAIN_LATER,
    assert_explained,
    ending,
    finish,
    join,
    next_event,
)
from moshi_ctl import _native
from moshi_ctl.addresses import DEFAULT_PATH
from moshi_ctl.protocol import FRAME_SAMPLES, Samples, Step, encode_audio
from support import exposition, speech
from support.exposition import ended
from support.faults import PACKAGE, failing, needs_faults
from support.http import Answer, request
from support.waiting import wait_until
from support.worker import KEY, Worker

FAILED = "the model failed and the server is stopping"
HEALTH = ("/health/ready", "/health/live", "/api/build_info")
TOLD_WITHIN_S = 4.0


def post(server: Worker) -> Answer:
    body = speech.SPEECH.read_bytes()
    return request(server.port, "POST", DEFAULT_PATH, body, {"kyutai-api-key": KEY})


def reasons(server: Worker, path: str) -> str:
    """Why the server says that it is not available, and it does."""
    answer = request(server.port, "GET", path)
    assert answer.status == 503, path
    said = json.loads(answer.body)
    assert said["status"] == "unavailable"
    (reason,) = said["reasons"]
    return str(reason)


@needs_faults
@pytest.mark.parametrize(
    ("fault", "reason", "ended_within_s"),
    [
        ("panic@10", "a panic on purpose", 5.0),
        ("error@10", "an error on purpose", 5.0),
        ("out-of-memory@10", "memory allocation failed", 5.0),
        # It has to be noticed before.
        ("hang@10", "a step hangs", 5.0 + TOLD_WITHIN_S),
    ],
)
def test_everybody_is_told_of_a_model_that_failed_and_the_worker_ends(
    start: Start, audio: Samples, fault: str, reason: str, ended_within_s: float
) -> None:
    with start(lanes=4, env=failing(fault)) as server, contextlib.ExitStack() as stack:
        idle, spoke = (stack.enter_context(join(server.port)) for _ in range(2))
        # It is well until then.
        spoke.send_message(encode_audio(audio[: 3 * FRAME_SAMPLES]))
        steps = [next_event(spoke) for _ in range(3)]
        assert all(isinstance(step, Step) for step in steps)
        assert request(server.port, "GET", HEALTH[0]).status == 200

        began = time.monotonic()
        answer = post(server)
        assert answer.status == 503
        assert json.loads(answer.body) == {"error": FAILED}
        for session in (idle, spoke):
            end = ending(session)
            assert_explained(end, INTERNAL_ERROR)
            assert end.errors == [FAILED]
        assert time.monotonic() - began <= TOLD_WITHIN_S

        for path in HEALTH:
            assert reason in reasons(server, path), path
        with raw_websocket.connect(server.port, headers=AUTHORIZED) as late:
            end = ending(late)
            assert_explained(end, GOING_AWAY)
            assert reason in end.errors[0]
        assert post(server).status == 503
        wait_until(lambda: exposition.ended(server, "model_failed") == 3)
        assert exposition.samples(server)["moshi_ready"] == 0

        assert server.process.wait(ended_within_s) == 1
        assert time.monotonic() - began <= ended_within_s
    errors = [line for line in server.log if line.startswith("error: ")]
    assert len(errors) == 1
    assert reason in errors[0]


@needs_faults
def test_a_body_on_its_way_to_a_model_that_failed_is_answered(start: Start) -> None:
    with start(lanes=2, env=failing("error@1")) as server, raw_websocket.dial(server.port) as half:
        headers = [*AUTHORIZED, ("Content-Length", "100000")]
        half.socket.sendall(raw_websocket.post_request(server.port, headers) + bytes(1_000))
        server.until("a file comes in")
        assert post(server).status == 503
        assert half.read_head()[0] == 503


SLOW_MS = 100
LAG_S = 0.2


@needs_faults
def test_a_model_slower_than_real_time_lets_nobody_else_in(
    start: Start, audio: Samples, expected: Heard
) -> None:
    def lag_s() -> float:
        return exposition.samples(server)["moshi_lag_seconds"]

    with (
        start(lag_s=LAG_S, env=failing(f"slow:{SLOW_MS}")) as server,
        join(server.port) as inside,
        ThreadPoolExecutor(1) as pool,
    ):
        inside.send_message(encode_audio(audio))
        listening = pool.submit(finish, inside)
        wait_until(lambda: lag_s() > LAG_S / 2)
        wait_until(lambda: exposition.samples(server)["moshi_overloaded"] == 1)
        lag = lag_s()
        wait_until(lambda: lag_s() > lag)
        assert "overloaded" in reasons(server, "/health/ready")
        # It is no reason to start it again.
        for path in HEALTH[1:]:
            assert request(server.port, "GET", path).status == 200
        with raw_websocket.connect(server.port, headers=AUTHORIZED) as refused:
            end = ending(refused)
        assert_explained(end, TRY_AGAIN_LATER)
        assert "overloaded" in end.errors[0]
        status, headers_of = raw_session.post(server.port, Content_Length="1000000")
        assert status == 503
        assert int(headers_of["retry-after"]) > 0
        assert exposition.sums(server, reason="overloaded")["moshi_refusals_total"] == 2
        assert not listening.done(), "it was over too early to show anything"

        assert heard(listening.result()) == expected
        wait_until(lambda: exposition.samples(server)["moshi_overloaded"] == 0)
        assert request(server.port, "GET", HEALTH[0]).status == 200
        inside.socket.close()
        with join(server.port) as session:
            assert finish(session)


NAN_STEP = 500
VICTIM_FRAMES = 600


@needs_faults
def test_results_that_are_no_numbers_end_only_their_stream(
    start: Start, audio: Samples, expected: Heard
) -> None:
    with (
        start(env=failing(f"nan-logits@{NAN_STEP}")) as server,
        # It comes first, so it has the first lane; as it waits for every step, it takes part in
        # every one.
        join(server.port) as victim,
        ThreadPoolExecutor(1) as pool,
    ):
        samples = minutes_of_speech(1.0)[: VICTIM_FRAMES * FRAME_SAMPLES]
        victim.send_message(encode_audio(samples))
        listening = pool.submit(ending, victim)
        with clean_streams(server.url, audio, expected, count=3):
            end = listening.result()
        assert_explained(end, INTERNAL_ERROR)
        assert ended(server, "bad_output") == 1
        assert sum(isinstance(event, Step) for event in end.events) == NAN_STEP - 1
        # Its lane is as good as new.
        wait_until(lambda: lanes_in_use(server) == 0)
        assert say(server.url, audio) == expected
        assert request(server.port, "GET", HEALTH[0]).status == 200


VARIABLE = "MOSHI_FAULT"


def test_what_is_shipped_cannot_be_made_to_fail(
    start: Start, audio: Samples, expected: Heard
) -> None:
    assert VARIABLE.encode() not in Path(str(_native.__file__)).read_bytes()
    with start(env={VARIABLE: "panic@1"}) as server:
        assert say(server.url, audio) == expected


@needs_faults
def test_what_can_be_made_to_fail_is_found_by_that_name() -> None:
    extension = PACKAGE / "moshi_ctl" / Path(str(_native.__file__)).name
    assert VARIABLE.encode() in extension.read_bytes()
