from __future__ import annotations

import pytest

from moshi_ctl import keys
from moshi_ctl.errors import UsageError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("one", ["one"]),
        (" one , two,three ", ["one", "two", "three"]),
        ("one,,two,", ["one", "two"]),
        ("", None),
        ("   ", None),
    ],
)
def test_keys_are_split_and_trimmed(
    value: str, expected: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOSHI_API_KEY", value)
    assert keys.keys_from_environment() == expected


def test_no_variable_is_no_key() -> None:
    assert keys.keys_from_environment() is None


@pytest.mark.parametrize("value", [",", " , ,", "good,sécret", "good,two words", "good,a\tb"])
def test_unusable_keys_are_refused_and_not_repeated(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOSHI_API_KEY", value)
    with pytest.raises(UsageError) as caught:
        keys.keys_from_environment()
    said = f"{caught.value.message} {caught.value.hint}"
    assert "MOSHI_API_KEY" in said
    for secret in ("sécret", "two words", "good"):
        assert secret not in said


@pytest.mark.parametrize(
    ("value", "expected"),
    [("secret", "secret"), (" a, b ", " a, b "), ("", None), (" \t", None)],
)
def test_a_secret_is_taken_as_it_is(
    value: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BETTER_AUTH_SECRET", value)
    assert keys.jwt_secret_from_environment() == expected


def test_no_variable_is_no_secret() -> None:
    assert keys.jwt_secret_from_environment() is None


@pytest.mark.parametrize(
    ("secret", "short"), [("x" * 31, True), ("x" * 32, False), ("ü" * 15, True), ("ü" * 16, False)]
)
def test_secrets_are_measured_in_bytes(secret: str, short: bool) -> None:
    assert keys.is_short_for_tokens(secret) is short


@pytest.mark.parametrize("addr", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_may_be_open(addr: str) -> None:
    keys.refuse_open_server(addr)


@pytest.mark.parametrize("addr", ["0.0.0.0", "::", "192.168.1.5", "10.0.0.1", "example.org"])
def test_others_may_not(addr: str) -> None:
    with pytest.raises(UsageError) as caught:
        keys.refuse_open_server(addr)
    assert addr in caught.value.message
    assert "MOSHI_API_KEY" in str(caught.value.hint)
