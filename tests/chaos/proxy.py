"""A TCP proxy on loopback whose two directions can each go wrong, at once or after some bytes.

    with proxy(server.port) as between:
        between.switch(Direction.TO_CLIENT, BlackHole(), after_bytes=1000)
        ...  # connect to between.port

It goes wrong for every connection there is and for those that come. Bytes are counted for each
connection and direction by itself, so that a fault begins exactly where it should.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

_T = TypeVar("_T")

_PIECE_BYTES = 65_536
_END_TIMEOUT_S = 10.0
# Closes with a reset instead of a good-bye, whatever is unsent.
_LINGER_0 = struct.pack("ii", 1, 0)


class Direction(enum.Enum):
    """Which way bytes go."""

    TO_SERVER = enum.auto()
    TO_CLIENT = enum.auto()


@dataclass(frozen=True)
class Delay:
    """Every piece is held back.

    Attributes:
        seconds: For how long.
    """

    seconds: float


@dataclass(frozen=True)
class Trickle:
    """Every byte is written alone.

    Attributes:
        pause_s: What passes between two of them.
    """

    pause_s: float = 0.0


@dataclass(frozen=True)
class Stall:
    """Nothing is read any more, so that the sender's buffers fill up."""


@dataclass(frozen=True)
class BlackHole:
    """Everything is read and nothing is passed on, not even the end."""


@dataclass(frozen=True)
class Fin:
    """The receiver is told that this was all; the other direction stays open."""


@dataclass(frozen=True)
class Reset:
    """Both connections end with a RST."""


Fault = Delay | Trickle | Stall | BlackHole | Fin | Reset


@dataclass
class _Wire:
    """One direction, for all connections.

    Attributes:
        fault: What is wrong with it, if anything.
        after_bytes: How many bytes of a connection pass before that.
        changed: Set when it is another fault; replaced by a new event then.
    """

    fault: Fault | None = None
    after_bytes: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def switch(self, fault: Fault | None, after_bytes: int) -> None:
        self.fault, self.after_bytes = fault, after_bytes
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def fault_after(self, passed: int) -> Fault | None:
        return self.fault if passed >= self.after_bytes else None

    def allowance(self, passed: int) -> int:
        """The bytes that may pass before the next look at the fault."""
        left = self.after_bytes - passed
        return left if self.fault is not None and left > 0 else _PIECE_BYTES


class _ResetError(Exception):
    """The connection is to end with a RST."""


@dataclass
class Proxy:
    """A running proxy.

    Attributes:
        port: Where it listens.
        passed: The bytes that it passed on, of all connections.
    """

    target_port: int
    port: int = 0
    passed: dict[Direction, int] = field(default_factory=lambda: dict.fromkeys(Direction, 0))
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _wires: dict[Direction, _Wire] = field(default_factory=lambda: {d: _Wire() for d in Direction})
    _links: set[asyncio.Task[None]] = field(default_factory=set)

    def switch(self, direction: Direction, fault: Fault | None, *, after_bytes: int = 0) -> None:
        """Makes a direction go wrong, or right again; holds when it returns.

        Args:
            direction: Which one.
            fault: What is wrong with it from now on; None ends what was.
            after_bytes: How many bytes each connection passes before that, those that it has
                passed already included.
        """

        async def switch() -> None:
            self._wires[direction].switch(fault, after_bytes)

        self._run(switch())

    def open_connections(self) -> int:
        """How many there are."""

        async def count() -> int:
            return len(self._links)

        return self._run(count())

    def _run(self, what: Coroutine[None, None, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(_END_TIMEOUT_S)

    def _serve(self, listening: socket.socket, ending: asyncio.Event) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._accept(listening, ending))

    async def _accept(self, listening: socket.socket, ending: asyncio.Event) -> None:
        async def accept() -> None:
            while True:
                client, _ = await self._loop.sock_accept(listening)
                link = asyncio.create_task(self._link(client))
                self._links.add(link)
                link.add_done_callback(self._links.discard)

        accepting = asyncio.create_task(accept())
        await ending.wait()
        tasks = {accepting, *self._links}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _link(self, client: socket.socket) -> None:
        """One client's connection and ours to the server for it, to their end."""
        with client, socket.socket() as server:
            for end in (client, server):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pumps = []
            try:
                await self._loop.sock_connect(server, ("127.0.0.1", self.target_port))
                pumps = [
                    asyncio.create_task(self._pump(client, server, Direction.TO_SERVER)),
                    asyncio.create_task(self._pump(server, client, Direction.TO_CLIENT)),
                ]
                await asyncio.gather(*pumps)
            except (_ResetError, OSError):
                # Whatever happened to one end is passed on to the other as a reset.
                for end in (client, server):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, source: socket.socket, sink: socket.socket, way: Direction) -> None:
        """Passes bytes on until the source has no more."""
        wire = self._wires[way]
        passed, held, over = 0, b"", False
        # Never given up half way: what it has read would be lost.
        reading: asyncio.Task[bytes] | None = None
        while True:
            fault = wire.fault_after(passed)
            if isinstance(fault, Reset):
                raise _ResetError
            if isinstance(fault, Fin):
                sink.shutdown(socket.SHUT_WR)
                while not over and await (reading or self._loop.sock_recv(source, _PIECE_BYTES)):
                    reading = None
                return
            if isinstance(fault, Stall) or (isinstance(fault, BlackHole) and over):
                await wire.changed.wait()
            elif not held and not over:
                reading = reading or asyncio.create_task(self._loop.sock_recv(source, _PIECE_BYTES))
                if await _done_before(wire.changed, reading):
                    held, reading = reading.result(), None
                    over = not held
            elif isinstance(fault, BlackHole):
                held = b""
            elif not held:
                sink.shutdown(socket.SHUT_WR)
                return
            else:
                piece = held[: wire.allowance(passed)]
                held = held[len(piece) :]
                await self._pass_on(piece, sink, fault)
                passed += len(piece)
                self.passed[way] += len(piece)

    async def _pass_on(self, piece: bytes, sink: socket.socket, fault: Fault | None) -> None:
        if isinstance(fault, Delay):
            await asyncio.sleep(fault.seconds)
        if not isinstance(fault, Trickle):
            await self._loop.sock_sendall(sink, piece)
            return
        for at in range(len(piece)):
            await self._loop.sock_sendall(sink, piece[at : at + 1])
            await asyncio.sleep(fault.pause_s)


async def _done_before(changed: asyncio.Event, reading: asyncio.Task[bytes]) -> bool:
    """Whether something was read, rather than the wire changed."""
    change = asyncio.create_task(changed.wait())
    try:
        await asyncio.wait({change, reading}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        change.cancel()
    return reading.done()


@contextmanager
def proxy(target_port: int) -> Iterator[Proxy]:
    """Passes connections to a free port of loopback on to another one, until the end.

    Args:
        target_port: Where on loopback the connections go.
    """
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(512)
        listening.setblocking(False)
        started = Proxy(target_port, listening.getsockname()[1])
        ending = asyncio.Event()
        arguments = (listening, ending)
        thread = threading.Thread(target=started._serve, args=arguments, daemon=True)
        thread.start()
        try:
            yield started
        finally:
            started._loop.call_soon_threadsafe(ending.set)
            thread.join(_END_TIMEOUT_S)
            assert not thread.is_alive(), "the proxy does not end"
