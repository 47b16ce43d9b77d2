"""The keys of a server that runs: read when it starts, and again whenever it is told to."""

from __future__ import annotations

from typing import Final, TypedDict

from moshi_ctl import config, env, keys, logs
from moshi_ctl.config import Config
from moshi_ctl.env import MOSHI_API_KEY
from moshi_ctl.errors import ConfigError, UsageError

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


class KeyReader:
    """Reads the keys of a server; calling it says what they are now."""

    def __init__(self, configuration: Config, addr: str, *, encrypted: bool) -> None:
        """Reads them for the first time, and warns of what is allowed but unwise.

        Args:
            configuration: What is served; read again when keys are.
            addr: The IP address that the server listens on.
            encrypted: Whether it speaks TLS.

        Raises:
            UsageError: When a key cannot be used, or there is none and others can reach `addr`.
        """
        self._config_path = configuration.path
        self._addr = addr
        self._first: Reading | None = self._read(configuration.key_count)
        if not encrypted and not keys.is_loopback(addr):
            logs.warn(_PLAIN, hint=_PLAIN_HINT)

    def __call__(self) -> Reading:
        """The first reading once, and then what environment, `.env` and configuration say now.

        Raises:
            UsageError: As the first time, or when the configuration cannot be read.
        """
        reading, self._first = self._first, None
        return reading or self._read(None)

    def _read(self, listed: int | None) -> Reading:
        environment = env.as_if_started_now()
        api_keys = keys.keys_from_environment(environment)
        secret = keys.jwt_secret_from_environment(environment)
        if secret is not None and keys.is_short_for_tokens(secret):
            logs.warn(keys.TOO_SHORT, hint=keys.TOO_SHORT_HINT)
        if api_keys is None and secret is None and not self._listed(listed):
            keys.refuse_open_server(self._addr)
            logs.warn(
                f"no API key is set: every program on this machine can use the server at "
                f"{self._addr}",
                hint=f"set {MOSHI_API_KEY.name} to change that",
            )
        return Reading(
            api_keys=None if api_keys is None else [(key.name, key.key) for key in api_keys],
            jwt_secret=secret,
        )

    def _listed(self, known: int | None) -> int:
        """How many keys the configuration lists."""
        if known is not None:
            return known
        try:
            return config.read(self._config_path).key_count
        except ConfigError as error:
            raise UsageError(str(error), hint=error.hint) from None
