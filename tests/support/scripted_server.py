"""An HTTP server on loopback that answers as a test tells it to, also badly."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MORE_BYTES_THAN_ANYBODY_READS = 64 * 2**20


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        body: What is said.
        status: The HTTP status.
        headers: Beside its length.
        raw: What goes over the wire instead of HTTP.
        claimed_bytes: What its length is said to be.
        stalls: Whether it holds on before the last byte, until the server ends.
        drips: Whether its header comes in pieces that never end.
        endless: Whether the body is sent again and again.
    """

    body: str | bytes = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    claimed_bytes: int | None = None
    stalls: bool = False
    drips: bool = False
    endless: bool = False

    @property
    def payload(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else self.body.encode()


OK = Reply('{"status":"ok"}')


def unavailable(*reasons: str) -> Reply:
    return Reply(json.dumps({"status": "unavailable", "reasons": reasons}), status=503)


Script = Callable[[], Reply]


@dataclass
class ScriptedServer:
    """A server with an answer for each path; others are answered with 404.

    Attributes:
        port: Where it listens, whether it runs or not.
        replies: By path; one that is a function is asked each time.
        asked: The paths that were asked for, in turn.
    """

    port: int = 0
    replies: dict[str, Reply | Script] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    _server: ThreadingHTTPServer | None = None
    _ending: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serves(self, **replies: str | Reply | Script) -> ScriptedServer:
        """Sets what is answered; `metrics`, `health_ready` and so on stand for paths."""
        for name, reply in replies.items():
            path = "/" + name.replace("health_", "health/").replace("api_", "api/")
            self.replies[path] = Reply(reply) if isinstance(reply, str) else reply
        return self

    def start(self) -> None:
        handler = type("Handler", (_Handler,), {"script": self})
        self._ending = threading.Event()
        self._server = _Server(("127.0.0.1", self.port), handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._ending.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def reply_to(self, path: str) -> Reply:
        self.asked.append(path)
        reply = self.replies.get(path, Reply("not found", status=404))
        return reply if isinstance(reply, Reply) else reply()

    def wait(self, timeout_s: float) -> bool:
        """Whether the server ends within that time."""
        return self._ending.wait(timeout_s)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


class _Handler(BaseHTTPRequestHandler):
    script: ScriptedServer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        pass

    def do_GET(self) -> None:
        try:
            self._answer(self.script.reply_to(self.path))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # The client had enough.

    def _answer(self, reply: Reply) -> None:
        if reply.raw is not None:
            self.wfile.write(reply.raw)
            return
        if reply.drips:
            self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
            while not self.script.wait(0.05):
                self.wfile.write(b"x")
            return
        body = reply.payload
        self.send_response(reply.status)
        if not reply.endless:
            claimed = len(body) if reply.claimed_bytes is None else reply.claimed_bytes
            self.send_header("Content-Length", str(claimed))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if reply.stalls:
            self.wfile.write(body[:-1])
            self.script.wait(60)
            return
        sent = 0
        while True:
            self.wfile.write(body)
            sent += len(body)
            if not reply.endless or sent > MORE_BYTES_THAN_ANYBODY_READS:
                return


@contextmanager
def scripted_server(**replies: str | Reply | Script) -> Iterator[ScriptedServer]:
    """A server on a free port of loopback."""
    server = ScriptedServer().serves(**replies)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def silent_port() -> Iterator[int]:
    """A port of loopback that takes connections and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def closed_port() -> int:
    """A port of loopback where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
