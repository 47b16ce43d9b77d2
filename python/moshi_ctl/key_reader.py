"""The keys of a server that runs: read when it starts, and again whenever it is told to."""

from __future__ import annotations

from typing import Final, TypedDict

from moshi_ctl import env, keys, logs
from moshi_ctl.config import Config
from moshi_ctl.env import MOSHI_API_KEY

_PLAIN: Final = "keys and audio travel as plain text: whoever is on their way can read them"
_PLAIN_HINT: Final = (
    "put a proxy that terminates TLS in front, or give a certificate with --tls-cert and --tls-key"
)


class Reading(TypedDict):
    """What the extension is told.

    Attributes:
        api_keys: Names and keys; None where the configuration's hold.
        jwt_secret: The secret of tokens, if there is one.
    """

    api_keys: list[tuple[str, str]] | None
    jwt_secret: str | None


_NONE: Final = Reading(api_keys=None, jwt_secret=None)


class KeyReader:
    """Reads the keys of a server; calling it says what they are now."""

    def __init__(self, configuration: Config, addr: str, *, encrypted: bool) -> None:
        """Reads them for the first time, and warns of what is allowed but unwise.

        Args:
            configuration: What is served.
            addr: The IP address that the server listens on.
            encrypted: Whether it speaks TLS.

        Raises:
            UsageError: When a key cannot be used, or there is none and others can reach `addr`.
        """
        first = _read()
        if (
            first["api_keys"] is None
            and first["jwt_secret"] is None
            and not configuration.key_count
        ):
            keys.refuse_open_server(addr)
            logs.warn(
                f"no API key is set: every program on this machine can use the server at {addr}",
                hint=f"set {MOSHI_API_KEY.name} to change that",
            )
        if not encrypted and not keys.is_loopback(addr):
            logs.warn(_PLAIN, hint=_PLAIN_HINT)
        self._first: Reading | None = first

    def __call__(self) -> Reading:
        """The first reading once, and then what the environment and `.env` say now.

        A server that has keys keeps them where there would be none any more.

        Raises:
            UsageError: When a key cannot be used.
        """
        reading, self._first = self._first, None
        return reading or _read()


def _read() -> Reading:
    environment = env.as_if_started_now()
    api_keys = keys.keys_from_environment(environment)
    secret = keys.jwt_secret_from_environment(environment)
    if secret is not None and keys.is_short_for_tokens(secret):
        logs.warn(keys.TOO_SHORT, hint=keys.TOO_SHORT_HINT)
    return Reading(
        api_keys=None if api_keys is None else [(key.name, key.key) for key in api_keys],
        jwt_secret=secret,
    )
