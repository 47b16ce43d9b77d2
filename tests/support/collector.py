"""An OpenTelemetry collector on loopback, as far as traces over HTTP go."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from support.loopback import serving


@dataclass(frozen=True)
class Span:
    """A span that arrived.

    Attributes:
        name: Its name.
        id: What it is called by others, in hexadecimal digits.
        trace: The trace it belongs to, likewise.
        parent: Its parent span, likewise; empty for none.
        attributes: What is known of it.
        events: The attributes of what happened in it, by name.
        resource: What is known of who sent it.
    """

    name: str
    id: str
    trace: str
    parent: str
    attributes: dict[str, Any]
    events: dict[str, dict[str, Any]]
    resource: dict[str, Any]


@dataclass
class Collector:
    """The collector.

    Attributes:
        endpoint: Its address.
        status: What it answers.
        delay_s: How long it thinks before it does.
        requests: What it was sent: path, headers and body.
    """

    endpoint: str = ""
    status: int = 200
    delay_s: float = 0.0
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    _ending: threading.Event = field(default_factory=threading.Event)

    @property
    def spans(self) -> list[Span]:
        return [span for _, _, body in self.requests for span in _spans(body)]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


def _spans(body: bytes) -> Iterator[Span]:
    request = ExportTraceServiceRequest.FromString(body)
    for sent in request.resource_spans:
        for scope in sent.scope_spans:
            for span in scope.spans:
                yield Span(
                    name=span.name,
                    id=span.span_id.hex(),
                    trace=span.trace_id.hex(),
                    parent=span.parent_span_id.hex(),
                    attributes=_attributes(span),
                    events={event.name: _attributes(event) for event in span.events},
                    resource=_attributes(sent.resource),
                )


def _attributes(message: Any) -> dict[str, Any]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in message.attributes
    }


def _handler(collector: Collector) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            named = {name.lower(): value for name, value in self.headers.items()}
            collector.requests.append((self.path, named, body))
            collector._ending.wait(collector.delay_s)
            self.send_response(collector.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def collector() -> Iterator[Collector]:
    """Starts a collector on a free loopback port."""
    started = Collector()
    with serving(_handler(started)) as port:
        started.endpoint = f"http://127.0.0.1:{port}"
        try:
            yield started
        finally:
            started._ending.set()
