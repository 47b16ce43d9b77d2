"""Asking a server over HTTP: where it is, and answers that are bounded in time and size."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from moshi_ctl import tls
from moshi_ctl.errors import ClientError, UsageError
from moshi_ctl.keys import is_loopback
from moshi_ctl.report import one_line

_DEFAULT_PORT: Final = 8080

DEFAULT_URL: Final = f"http://127.0.0.1:{_DEFAULT_PORT}"
"""Where `moshi-ctl worker` listens unless told otherwise."""

TIMEOUT_S: Final = 5.0
"""What an answer may take, from the look-up of the name to the last byte."""

MAX_ANSWER_BYTES: Final = 4 * 2**20
"""Hundreds of times what a server of ours says."""

_BLOCK_BYTES: Final = 2**16
_SCHEMES: Final = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
# What a user may have copied along with the address; what comes before it may be a proxy's prefix.
_OUR_PATHS: Final = re.compile(r"/(metrics|health(/(live|ready))?|api(/.*)?)$")
_EXAMPLE_HINT: Final = f"write one like {DEFAULT_URL}"


class UnreachableError(ClientError):
    """No answer came; one may come later.

    Attributes:
        reason: Why, in a few words and without the address.
    """

    def __init__(self, address: str, reason: str, *, hint: str) -> None:
        super().__init__(f"{address}: {reason}", hint=hint)
        self.reason = reason


@dataclass(frozen=True)
class Answer:
    """What a server answered.

    Attributes:
        place: What was asked, and where the answer came from if that is elsewhere; for messages.
        status: The HTTP status.
        body: At most `MAX_ANSWER_BYTES`.
    """

    place: str
    status: int
    body: bytes

    def json(self) -> Any:  # noqa: ANN401 - whatever the server says
        """The body as JSON; None where it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


def base_address(url: str) -> str:
    """The address of the server that `url` is about, without a slash at the end.

    Taken are `http` and `https` addresses, those of its `/metrics`, `/health` and `/api` routes, a
    client's `ws` and `wss` addresses, and a host with or without a port.

    Raises:
        UsageError: When it is no such address.
    """
    has_scheme = "://" in url
    try:
        parts = urlsplit(url if has_scheme else f"http://{url}")
        scheme, host, port = _SCHEMES.get(parts.scheme), parts.hostname, parts.port
    except ValueError:
        scheme = host = port = None
    # Neither a password nor a key is shown.
    shown = url.partition("?")[0]
    if "@" in shown:
        raise UsageError(
            "the server's address holds a user name or an @, which nothing here can use",
            hint=_EXAMPLE_HINT,
        )
    if not scheme or not host or port == 0 or host.isdigit() or not _is_printable_ascii(url):
        raise UsageError(f"{shown!r} is not the address of a server", hint=_EXAMPLE_HINT)
    if port is None and not has_scheme:
        port = _DEFAULT_PORT
    path = parts.path.rstrip("/")
    prefix = _OUR_PATHS.sub("", path)
    if prefix == path and parts.scheme.startswith("ws"):
        prefix = ""  # A module may be served at any path.
    name = f"[{host}]" if ":" in host else host
    return f"{scheme}://{name}{'' if port is None else f':{port}'}{prefix}"


def get(url: str, *, timeout_s: float = TIMEOUT_S, trust: ssl.SSLContext | None = None) -> Answer:
    """Asks once, whatever the status of the answer.

    Args:
        url: What to ask.
        timeout_s: What that may take.
        trust: Which certificates to trust; the system's if None.

    Raises:
        UnreachableError: When no whole answer came in time.
        ClientError: When what came is no answer that a server gives, or too long.
    """
    results: list[Answer | Exception] = []
    # In a thread, because a look-up of a name cannot be limited, and each byte of a slow server's
    # answer begins a socket's timeout anew. A daemon: it may outlast its use.
    thread = threading.Thread(
        target=lambda: results.append(_get_or_error(url, timeout_s, trust)), daemon=True
    )
    thread.start()
    thread.join(timeout_s)
    result = results[0] if results else TimeoutError()
    if isinstance(result, ClientError):
        raise result
    if isinstance(result, Exception):
        raise _explained(url, result, timeout_s) from result
    return result


def _get_or_error(url: str, timeout_s: float, trust: ssl.SSLContext | None) -> Answer | Exception:
    try:
        return _get(url, timeout_s, trust)
    except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
        return error


def _get(url: str, timeout_s: float, trust: ssl.SSLContext | None) -> Answer:
    deadline_s = time.monotonic() + timeout_s
    request = urllib.request.Request(  # noqa: S310 - the opener knows nothing but HTTP
        url, headers={"Accept": "text/plain, application/json", "User-Agent": "moshi-ctl"}
    )
    try:
        opener = _opener(urlsplit(url).hostname or "", trust)
        response = opener.open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        body = bytearray()
        while block := response.read1(_BLOCK_BYTES):
            body += block
            if len(body) > MAX_ANSWER_BYTES:
                raise ClientError(
                    f"{url}: the answer is longer than {MAX_ANSWER_BYTES // 2**20} MiB",
                    hint="no server of speech models says so much; check host and port",
                )
            if time.monotonic() > deadline_s:
                raise TimeoutError
        # read1 takes the end of the connection for the end of the answer.
        if getattr(response, "length", None):
            raise http.client.IncompleteRead(bytes(body))
        came_from = response.geturl()
        place = url if came_from in (None, url) else f"{url}, redirected to {one_line(came_from)}"
        return Answer(place, int(response.status or 0), bytes(body))


def _opener(host: str, trust: ssl.SSLContext | None) -> urllib.request.OpenerDirector:
    """Follows redirects, from HTTP to HTTP only."""
    opener = urllib.request.OpenerDirector()
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=trust),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ]
    if not is_loopback(host):
        handlers.append(urllib.request.ProxyHandler())
    for handler in handlers:
        opener.add_handler(handler)
    return opener


def _explained(url: str, error: Exception, timeout_s: float) -> ClientError:
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    match error:
        case ConnectionRefusedError():
            return UnreachableError(
                url,
                "connection refused",
                hint="start a server with `moshi-ctl worker`, or check host and port",
            )
        case TimeoutError():
            return UnreachableError(
                url,
                f"no answer within {timeout_s:.3g} s",
                hint="check the address, and whether a firewall is in between",
            )
        case socket.gaierror():
            return UnreachableError(
                url, "the name is not known", hint="check the host's name and the network"
            )
        case ssl.SSLError():
            return tls.failed(url, error, plain="http://")
        case http.client.RemoteDisconnected() | http.client.IncompleteRead() | ConnectionError():
            return UnreachableError(
                url,
                "the connection broke off",
                hint="see whether the server still runs; try https:// if it is behind TLS",
            )
        case http.client.HTTPException():
            return ClientError(
                f"{url}: what answers there does not speak HTTP",
                hint="check the port, and http:// against https://",
            )
        case OSError():
            return UnreachableError(
                url,
                f"cannot connect: {error.strerror or error}",
                hint="check the address and the network",
            )
        case _:
            return ClientError(f"{url}: cannot be asked: {error}", hint=_EXAMPLE_HINT)


def _is_printable_ascii(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text
