"""How many may come, from one address or with one key, and where the key may be."""

from __future__ import annotations

import contextlib

import pytest

from chaos import raw_session, raw_websocket
from chaos.conftest import Start
from chaos.processes import lanes_in_use, open_descriptors
from chaos.raw_session import finish, join, next_event
from chaos.raw_websocket import ConnectionEndedError, RefusedError
from moshi_ctl.addresses import DEFAULT_PATH
from moshi_ctl.protocol import Ready
from support import exposition
from support.waiting import wait_until
from support.worker import KEY, Worker

MOST = 5
TOO_MANY = 7
OTHER_ADDRESS = "127.0.0.2"
OTHER_KEY = "other-key"
SESSIONS = 2


def is_let_in(server: Worker, address: str = "127.0.0.1") -> bool:
    """Whether a connection from there is served."""
    with raw_websocket.dial(server.port, address=address) as client:
        # One that is closed at once may not take this any more.
        with contextlib.suppress(OSError):
            client.socket.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            return client.read_head()[0] == 200
        except ConnectionEndedError:
            return False


@pytest.mark.parametrize(
    ("limit", "reason", "another_address_helps"),
    [("connections", "connections", False), ("connections_per_address", "address", True)],
)
def test_connections_beyond_the_most_are_closed_at_once(
    start: Start, limit: str, reason: str, another_address_helps: bool
) -> None:
    with start(**{limit: MOST}) as server, contextlib.ExitStack() as stack:
        *sessions, last = [stack.enter_context(join(server.port)) for _ in range(MOST)]
        full = open_descriptors(server)
        assert not any(is_let_in(server) for _ in range(TOO_MANY))
        assert is_let_in(server, OTHER_ADDRESS) == another_address_helps
        for session in sessions:
            assert finish(session)
        last.socket.close()
        # Seen from outside, as whoever asked the server could be one too many.
        wait_until(lambda: open_descriptors(server) < full)
        counted = exposition.sums(server, reason=reason)["moshi_connections_dropped_total"]
        assert counted == TOO_MANY + (not another_address_helps)
        wait_until(lambda: open_descriptors(server) < full)
        with join(server.port) as session:
            assert finish(session)


def test_a_key_has_no_more_sessions_than_it_may(start: Start) -> None:
    def refused() -> float:
        return exposition.sums(server, reason="too_many")["moshi_refusals_total"]

    keys = {"MOSHI_API_KEY": f"web:{KEY},app:{OTHER_KEY}"}
    with start(connections_per_key=SESSIONS, env=keys) as server, contextlib.ExitStack() as stack:
        *sessions, last = [stack.enter_context(join(server.port)) for _ in range(SESSIONS)]
        with pytest.raises(RefusedError) as caught:
            join(server.port)
        assert caught.value.status == 429
        assert int(caught.value.headers["retry-after"]) > 0
        # Its body is not asked for.
        status, headers = raw_session.post(server.port, Content_Length="1000000")
        assert status == 429
        assert int(headers["retry-after"]) > 0
        assert refused() == 2
        with join(server.port, key=OTHER_KEY) as other:
            assert finish(other)
        for session in sessions:
            assert finish(session)

        last.socket.close()
        wait_until(lambda: lanes_in_use(server) == SESSIONS - 1)
        wait_until(lambda: exposition.sums(server, key="web")["moshi_key_sessions_open"] == 1)
        with join(server.port) as session:
            assert finish(session)
        assert refused() == 2


@pytest.mark.parametrize("allowed", [True, False])
def test_a_key_in_the_query_is_taken_only_where_that_is_allowed(
    start: Start, allowed: bool
) -> None:
    path = f"{DEFAULT_PATH}?auth_id={KEY}"
    with start(allow_key_in_query=allowed) as server:
        if allowed:
            with raw_websocket.connect(server.port, path) as session:
                assert next_event(session) == Ready()
        else:
            with pytest.raises(RefusedError) as caught:
                raw_websocket.connect(server.port, path)
            assert caught.value.status == 401
        with raw_websocket.dial(server.port) as client:
            headers = [("Content-Length", "4")]
            client.socket.sendall(raw_websocket.post_request(server.port, headers, path) + b"none")
            assert client.read_head()[0] == (415 if allowed else 401)
        with join(server.port) as session:
            assert finish(session)
