"""A model hub on loopback, as far as downloading files goes, with faults on request."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from support.loopback import serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeFile:
    """A file of a repository.

    Attributes:
        content: Its bytes.
        status: What is answered instead of them, unless 200.
        error_code: The hub's name for why.
        break_after: Bytes after which the first download's connection breaks off.
    """

    content: bytes = b""
    status: int = 200
    error_code: str | None = None
    break_after: int | None = None


@dataclass
class FakeHub:
    """The hub.

    Attributes:
        endpoint: Its address, for `HF_ENDPOINT`.
        files: What it has, by `organisation/repository/file`.
        requests: What was asked of it: method, file, `Range` and `Authorization`.
    """

    endpoint: str = ""
    files: dict[str, FakeFile] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)

    def environment(self, home: Path) -> dict[str, str]:
        return {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            repository, resolved, name = self.path.strip("/").partition("/resolve/main/")
            if not resolved:
                # The library asks for more than files; it does without.
                self._refuse(404, None)
                return
            key = f"{repository}/{name}"
            wanted_range = self.headers.get("Range")
            hub.requests.append((self.command, key, wanted_range, self.headers["Authorization"]))
            file = hub.files.get(key)
            if file is None:
                self._refuse(404, "EntryNotFound")
            elif file.status != 200:
                self._refuse(file.status, file.error_code)
            else:
                self._send(file, wanted_range, with_body=with_body)

        def _refuse(self, status: int, error_code: str | None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.send_header("X-Repo-Commit", COMMIT)
            if error_code:
                self.send_header("X-Error-Code", error_code)
                self.send_header("X-Error-Message", f"fake {error_code}")
            self.end_headers()

        def _send(self, file: FakeFile, wanted_range: str | None, *, with_body: bool) -> None:
            first_byte = (wanted_range or "bytes=0-").removeprefix("bytes=").partition("-")[0]
            start = int(first_byte)
            body = file.content[start:]
            self.send_response(206 if wanted_range else 200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(file.content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            if wanted_range:
                last = len(file.content) - 1
                self.send_header("Content-Range", f"bytes {start}-{last}/{len(file.content)}")
            self.end_headers()
            if not with_body:
                return
            if file.break_after is not None:
                body, file.break_after = body[: file.break_after], None
                self.close_connection = True
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            pass

    return Handler


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    with serving(_handler(hub)) as port:
        hub.endpoint = f"http://127.0.0.1:{port}"
        yield hub
