"""A target whose numbers a test decides, for faults that a real worker does not have on demand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from support.loopback import serving

Value = float | Callable[[float], float]
"""A number, or what makes one from the seconds since it was set."""


@dataclass
class MadeUpTarget:
    """What a target answers on `/metrics`."""

    port: int = 0
    _series: dict[str, tuple[Value, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def instance(self) -> str:
        return f"127.0.0.1:{self.port}"

    def set(self, series: str, value: Value) -> None:
        """Sets a series, named with its labels."""
        with self._lock:
            self._series[series] = (value, time.monotonic())

    def text(self) -> str:
        now = time.monotonic()
        with self._lock:
            return "".join(
                f"{series} {value if isinstance(value, (int, float)) else value(now - since)}\n"
                for series, (value, since) in self._series.items()
            )


@contextmanager
def made_up_target() -> Iterator[MadeUpTarget]:
    """Serves numbers on a free loopback port."""
    numbers = MadeUpTarget()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = numbers.text().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as numbers.port:
        yield numbers
