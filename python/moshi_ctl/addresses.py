"""Addresses of servers, as people write them, and whom to trust there."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit, urlunsplit

from moshi_ctl import tls
from moshi_ctl.errors import ClientError, UsageError

DEFAULT_PATH: Final = "/api/asr-streaming"
"""Where Kyutai's configurations serve speech to text."""

DEFAULT_URL: Final = f"ws://127.0.0.1:8080{DEFAULT_PATH}"


def complete(url: str) -> str:
    """The WebSocket address of a server; without a path, `DEFAULT_PATH` is taken.

    Raises:
        ClientError: When `url` is none.
    """
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    if scheme not in ("ws", "wss") or not parts.hostname or not _has_usable_port(parts):
        raise ClientError(
            f"{url.partition('?')[0]!r} is not the address of a server",
            hint=f"write one like {DEFAULT_URL}",
        )
    path = parts.path if parts.path not in ("", "/") else DEFAULT_PATH
    return urlunsplit((scheme, parts.netloc, path, parts.query, ""))


def trust(url: str, ca: Path | str | None) -> ssl.SSLContext | None:
    """What to ask the server at `url` with, when it is to be trusted by a file of certificates.

    Raises:
        UsageError: When `ca` holds none, or `url` is not encrypted.
    """
    if ca is None:
        return None
    scheme = urlsplit(url).scheme
    if scheme not in ("https", "wss"):
        raise UsageError(
            f"--ca: {url.partition('?')[0]} is not encrypted, so there is nothing to trust",
            hint=f"write {scheme}s://, or leave out --ca",
        )
    return tls.trusting(ca)


def _has_usable_port(parts: SplitResult) -> bool:
    try:
        return parts.port != 0
    except ValueError:
        return False
