"""The keys clients authenticate with, and where a server without any may listen."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from moshi_ctl.env import BETTER_AUTH_SECRET, MOSHI_API_KEY, value_of
from moshi_ctl.errors import UsageError

MIN_JWT_SECRET_BYTES = 32
"""What RFC 7518, section 3.2, asks of a secret for HS256."""

TOO_SHORT: Final = (
    f"{BETTER_AUTH_SECRET.name} is shorter than {MIN_JWT_SECRET_BYTES} bytes: whoever sees a token "
    "could find it by trying, and sign tokens too"
)
TOO_SHORT_HINT: Final = (
    "use a longer one, such as `openssl rand -base64 32` prints, here and where tokens are signed"
)

# What logs and metrics call those who come with a token, or to a server without keys.
_RESERVED_NAMES: Final = frozenset({"none", "token"})
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")

# From documentation, examples and configurations that others copy; without case and punctuation.
_KNOWN_TO_EVERYBODY: Final = frozenset(
    {
        "apikey",
        "authid",
        "betterauthsecret",
        "changeit",
        "changeme",
        "changethis",
        "default",
        "demo",
        "example",
        "firstkey",
        "key",
        "moshi",
        "moshikey",
        "mykey",
        "mysecret",
        "mysecretkey",
        "mysecrettoken",
        "password",
        "publictoken",
        "replaceme",
        "secondkey",
        "secret",
        "secretkey",
        "secrettoken",
        "test",
        "testkey",
        "token",
        "yourapikey",
        "yourapikeyhere",
        "yourjwtsecret",
        "yourjwtsecrethere",
        "yourkey",
        "yoursecret",
        "yoursecrethere",
        "yoursecretkey",
        "yoursecretkeyhere",
        "yourtoken",
        "yourtokenhere",
    }
)


@dataclass(frozen=True)
class ApiKey:
    """A key and what it is called in logs and metrics.

    Attributes:
        name: Its name, or `key-N` for the N-th of a list where it was given none.
        key: What clients send. It never shows.
    """

    name: str
    key: str = field(repr=False)


def keys_from_environment(environment: Mapping[str, str] = os.environ) -> list[ApiKey] | None:
    """The keys in `MOSHI_API_KEY`, or None when it is not set or blank.

    Raises:
        UsageError: When it is set but holds no usable key. No message ever repeats a key.
    """
    value = value_of(MOSHI_API_KEY, environment)
    if value is None:
        return None
    entries = [entry for entry in (part.strip() for part in value.split(",")) if entry]
    if not entries:
        raise UsageError(
            f"{MOSHI_API_KEY.name} is set but holds no key, only commas",
            hint=f"set it as in {MOSHI_API_KEY.name}=first-key,second-key, or unset it",
        )
    keys = [_named(number, entry) for number, entry in enumerate(entries, start=1)]
    _refuse_repetitions(keys)
    return keys


def without_name(entry: str) -> str:
    """The key of an entry `name:key`; what comes before a colon is only a name if it can be one."""
    name, colon, key = entry.partition(":")
    return key if colon and _NAME.fullmatch(name) else entry


def _named(number: int, entry: str) -> ApiKey:
    key = without_name(entry)
    name = entry[: -len(key) - 1] if len(key) < len(entry) else f"key-{number}"
    if not key:
        raise UsageError(
            f"key {number} of {MOSHI_API_KEY.name} is empty: nothing comes after the colon",
            hint="write name:key",
        )
    if not all("!" <= character <= "~" for character in key):
        raise UsageError(
            f"key {number} of {MOSHI_API_KEY.name} holds a blank or a character beyond ASCII, "
            "which an HTTP header cannot carry",
            hint="use letters, digits and punctuation only",
        )
    return ApiKey(name, key)


def _refuse_repetitions(keys: Sequence[ApiKey]) -> None:
    by_name: set[str] = set()
    by_key: dict[str, str] = {}
    for key in keys:
        if key.name in _RESERVED_NAMES:
            raise UsageError(
                f"{MOSHI_API_KEY.name} calls a key {key.name!r}, a name of the server's own",
                hint="give it another name",
            )
        if key.name in by_name:
            raise UsageError(
                f"{MOSHI_API_KEY.name} calls two keys {key.name!r}",
                hint="give each key a name of its own; one without a name is called after its "
                "place in the list, key-1, key-2 and so on",
            )
        if key.key in by_key:
            raise UsageError(
                f"{MOSHI_API_KEY.name} holds one key under two names, {by_key[key.key]!r} and "
                f"{key.name!r}",
                hint="remove one of them, or give each its own key",
            )
        by_name.add(key.name)
        by_key[key.key] = key.name


def jwt_secret_from_environment(environment: Mapping[str, str] = os.environ) -> str | None:
    """The secret in `BETTER_AUTH_SECRET`, or None when it is not set or blank.

    Blanks around it stay: whoever signs with the same variable does not trim it either.

    Raises:
        UsageError: When it is not text. No message ever repeats it.
    """
    secret = environment.get(BETTER_AUTH_SECRET.name, "")
    if not secret.strip():
        return None
    try:
        secret.encode()
    except UnicodeEncodeError:
        # Not chained: that error would show the secret.
        raise UsageError(
            f"{BETTER_AUTH_SECRET.name} is not UTF-8 text",
            hint="set it to the text that the tokens are signed with, or unset it",
        ) from None
    return secret


def is_short_for_tokens(jwt_secret: str) -> bool:
    """Whether somebody with a token could find the secret by trying."""
    return len(jwt_secret.encode()) < MIN_JWT_SECRET_BYTES


def is_known_to_everybody(key: str) -> bool:
    """Whether a key is a placeholder from documentation or an example."""
    return "".join(filter(str.isalnum, key.casefold())) in _KNOWN_TO_EVERYBODY


def is_loopback(addr: str) -> bool:
    """Whether only this machine can reach a server that listens on `addr`."""
    if addr == "localhost":
        return True
    try:
        return ipaddress.ip_address(addr).is_loopback
    except ValueError:
        return False


def refuse_open_server(addr: str) -> None:
    """Keeps a server that asks for no key from being reachable by others.

    Raises:
        UsageError: Unless `addr` is a loopback address.
    """
    if not is_loopback(addr):
        raise UsageError(
            f"no API key is set, so anybody who reaches {addr} could use this server",
            hint=f"set one, as in {MOSHI_API_KEY.name}=my-secret (in the environment or in .env), "
            "or serve this machine only with --addr 127.0.0.1",
        )
