"""What a client says of a session that did not come about or broke off."""

from __future__ import annotations

import ssl
from typing import Final

from websockets.exceptions import (
    ConnectionClosed,
    ConnectionClosedOK,
    InvalidHandshake,
    InvalidMessage,
    InvalidStatus,
    InvalidURI,
)
from websockets.frames import CloseCode

from moshi_ctl import tls
from moshi_ctl.errors import ClientError, NoFreeChannelsError
from moshi_ctl.protocol import Failure

OPEN_TIMEOUT_S: Final = 10.0
"""What connecting may take, and what the server may take then to be ready."""


def refused(place: str, error: Exception, *, has_key: bool) -> ClientError:
    """Why no session came about."""
    match error:
        case InvalidStatus(response=response) if response.status_code == 401:
            what = "the server does not know this key" if has_key else "the server asks for a key"
            return ClientError(
                f"{place}: {what} (HTTP 401)",
                hint="give one of the server's keys with --key or MOSHI_API_KEY",
            )
        case InvalidStatus(response=response) if response.status_code == 404:
            return ClientError(
                f"{place}: the server has nothing at this path (HTTP 404)",
                hint="see its /api/modules_info for the paths it serves",
            )
        case InvalidStatus(response=response):
            return ClientError(
                f"{place}: the server refuses the session (HTTP {response.status_code})",
                hint="it may be starting or overloaded; see its log",
            )
        case ssl.SSLError():
            return tls.failed(place, error, plain="ws://")
        case ConnectionRefusedError():
            return ClientError(
                f"{place}: nothing listens there (connection refused)",
                hint="start a server with `moshi-ctl worker`, or check the address with --url",
            )
        case TimeoutError():
            return ClientError(
                f"{place}: no answer within {OPEN_TIMEOUT_S:.0f} s",
                hint="check the address and whether a firewall is in between",
            )
        case InvalidMessage() | InvalidHandshake():
            return ClientError(
                f"{place}: what answers there does not speak WebSocket: {error}",
                hint="check the port, and ws:// against wss://",
            )
        case InvalidURI(msg=why):  # whose text holds the whole address
            return ClientError(
                f"{place}: is no address to connect to: {why}", hint="check the address"
            )
        case _:
            return ClientError(
                f"{place}: cannot connect: {error}", hint="check the address and the network"
            )


def reported(place: str, failure: Failure) -> ClientError:
    """What the server said before it ended the session."""
    if failure.message == "no free channels":
        return NoFreeChannelsError(
            f"{place}: no free channels: the server serves as many streams as it can",
            hint="try again later, or raise batch_size in its configuration",
        )
    return ClientError(
        f"{place}: the server reports: {failure.message}", hint="see the server's log"
    )


def ended_well(error: ConnectionClosed) -> bool:
    """Whether the server ended a session because there was nothing more to say."""
    # The library also takes "going away" for a good end; what was being said is lost all the same.
    return isinstance(error, ConnectionClosedOK) and (
        error.rcvd is None or error.rcvd.code == CloseCode.NORMAL_CLOSURE
    )


def broken_off(place: str, error: ConnectionClosed) -> ClientError:
    """How a session ended that did not end well."""
    if error.rcvd is None:
        return ClientError(
            f"{place}: the connection broke off", hint="see whether the server still runs"
        )
    code, reason = error.rcvd.code, error.rcvd.reason
    said = f" ({reason})" if reason else ""
    hints: dict[int, str] = {
        CloseCode.GOING_AWAY: "the server shuts down; connect again later",
        CloseCode.POLICY_VIOLATION: "the server objects to what was sent; see its log",
        CloseCode.MESSAGE_TOO_BIG: "send smaller messages",
        CloseCode.INTERNAL_ERROR: "the server failed; see its log",
        CloseCode.TRY_AGAIN_LATER: "the server is overloaded; try again later",
    }
    return ClientError(
        f"{place}: the server closed the session with code {code}{said}",
        hint=hints.get(code, "see the server's log"),
    )
