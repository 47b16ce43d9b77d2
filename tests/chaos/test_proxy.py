"""That the proxy does to a connection what it says, and exactly when."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from chaos.proxy import BlackHole, Delay, Direction, Fault, Fin, Proxy, Reset, Stall, Trickle, proxy
from support.waiting import wait_until

TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT
TIMEOUT_S = 10.0
SHORT_S = 0.3


class Ends:
    """A client's and a server's end of one connection through a proxy."""

    def __init__(self, between: Proxy, client: socket.socket, server: socket.socket) -> None:
        self.between = between
        self.client = client
        self.server = server
        for end in (client, server):
            end.settimeout(TIMEOUT_S)


@contextlib.contextmanager
def connected(*faults: tuple[Direction, Fault, int]) -> Iterator[Ends]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(TIMEOUT_S)
        with proxy(listening.getsockname()[1]) as between:
            for way, fault, after_bytes in faults:
                between.switch(way, fault, after_bytes=after_bytes)
            with (
                socket.create_connection(("127.0.0.1", between.port)) as client,
                listening.accept()[0] as server,
            ):
                yield Ends(between, client, server)


def all_of(end: socket.socket) -> bytes:
    received = b""
    while piece := end.recv(65_536):
        received += piece
    return received


def silent(end: socket.socket) -> bool:
    end.settimeout(SHORT_S)
    try:
        end.recv(1)
    except TimeoutError:
        return True
    finally:
        end.settimeout(TIMEOUT_S)
    return False


def test_without_a_fault_everything_passes_both_ways() -> None:
    sent = bytes(range(256)) * 4000
    with connected() as ends:
        for speaker, listener in ((ends.client, ends.server), (ends.server, ends.client)):

            def speak(speaker: socket.socket = speaker) -> None:
                speaker.sendall(sent)
                speaker.shutdown(socket.SHUT_WR)

            speaking = threading.Thread(target=speak)
            speaking.start()
            assert all_of(listener) == sent
            speaking.join()
        assert ends.between.passed == dict.fromkeys(Direction, len(sent))
        wait_until(lambda: ends.between.open_connections() == 0)


@pytest.mark.parametrize("after_bytes", [0, 5])
def test_a_fin_after_some_bytes(after_bytes: int) -> None:
    with connected((TO_SERVER, Fin(), after_bytes)) as ends:
        ends.client.sendall(b"0123456789")
        assert all_of(ends.server) == b"0123456789"[:after_bytes]
        ends.server.sendall(b"still there")
        assert ends.client.recv(100) == b"still there"


@pytest.mark.parametrize("after_bytes", [0, 5])
def test_a_reset_after_some_bytes(after_bytes: int) -> None:
    with connected() as ends:
        ends.between.switch(TO_CLIENT, Reset(), after_bytes=after_bytes)
        if after_bytes:
            ends.client.sendall(b"hello")
            assert ends.server.recv(100) == b"hello"
            ends.server.sendall(b"0123456789")
        for end in (ends.client, ends.server):
            with pytest.raises(ConnectionResetError):
                all_of(end)


def test_a_black_hole_swallows_everything_but_one_direction_only() -> None:
    with connected((TO_SERVER, BlackHole(), 3)) as ends:
        ends.client.sendall(b"0123456789" * 100_000)
        assert ends.server.recv(100) == b"012"
        ends.client.shutdown(socket.SHUT_WR)
        assert silent(ends.server)
        ends.server.sendall(b"hello")
        assert ends.client.recv(100) == b"hello"


def test_a_stall_keeps_everything_until_it_is_over() -> None:
    with connected((TO_SERVER, Stall(), 3)) as ends:
        ends.client.sendall(b"0123456789")
        assert ends.server.recv(100) == b"012"
        assert silent(ends.server)
        # What nobody reads is more than buffers hold.
        ends.client.settimeout(SHORT_S)
        with pytest.raises(TimeoutError):
            ends.client.sendall(bytes(32 << 20))
        ends.between.switch(TO_SERVER, None)
        assert ends.server.recv(7, socket.MSG_WAITALL) == b"3456789"


def test_a_delay_holds_back_but_loses_nothing() -> None:
    with connected((TO_CLIENT, Delay(SHORT_S), 0)) as ends:
        began = time.monotonic()
        ends.server.sendall(b"hello")
        assert ends.client.recv(5, socket.MSG_WAITALL) == b"hello"
        assert time.monotonic() - began >= SHORT_S


def test_a_trickle_is_single_bytes() -> None:
    with connected((TO_SERVER, Trickle(0.02), 0)) as ends:
        ends.client.sendall(b"0123456789")
        pieces: list[bytes] = []
        while len(b"".join(pieces)) < 10:
            pieces.append(ends.server.recv(100))
        assert b"".join(pieces) == b"0123456789"
        assert len(pieces) > 2


def test_faults_come_and_go_on_a_living_connection() -> None:
    with connected() as ends:
        ends.client.sendall(b"one")
        assert ends.server.recv(100) == b"one"
        ends.between.switch(TO_SERVER, BlackHole())
        ends.client.sendall(b"two")
        assert silent(ends.server)
        ends.between.switch(TO_SERVER, None)
        ends.client.sendall(b"three")
        assert ends.server.recv(100) == b"three"
        ends.between.switch(TO_CLIENT, Reset())
        with pytest.raises(ConnectionResetError):
            ends.server.recv(1)


def test_without_a_server_the_client_is_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with proxy(port) as between, socket.socket() as client:
        client.settimeout(TIMEOUT_S)

        def connect_and_listen() -> None:
            # A reset that is fast enough comes before the connection is known here.
            client.connect(("127.0.0.1", between.port))
            client.recv(1)

        with pytest.raises(ConnectionResetError):
            connect_and_listen()
