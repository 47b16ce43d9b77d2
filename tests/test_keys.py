from __future__ import annotations

import pytest

from moshi_ctl import keys
from moshi_ctl.errors import UsageError


def named(value: str) -> dict[str, str] | None:
    """What `MOSHI_API_KEY` means, by name."""
    found = keys.keys_from_environment({"MOSHI_API_KEY": value})
    return None if found is None else {key.name: key.key for key in found}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("one", {"key-1": "one"}),
        (" one , two,three ", {"key-1": "one", "key-2": "two", "key-3": "three"}),
        ("one,,two,", {"key-1": "one", "key-2": "two"}),
        ("", None),
        ("   ", None),
    ],
)
def test_keys_are_split_and_trimmed(value: str, expected: dict[str, str] | None) -> None:
    assert named(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("web:abc", {"web": "abc"}),
        # The place counts those that have a name too.
        ("web:abc,def,Team_2-b:ghi", {"web": "abc", "key-2": "def", "Team_2-b": "ghi"}),
        # Only the first colon ends a name.
        ("web:a:b:", {"web": "a:b:"}),
        (f"{'n' * 64}:abc", {"n" * 64: "abc"}),
        # What comes before the colon is no name.
        (f"{'n' * 65}:abc", {"key-1": f"{'n' * 65}:abc"}),
        (":abc", {"key-1": ":abc"}),
        ("we.b:abc", {"key-1": "we.b:abc"}),
        ("key-2:a,b:c", {"key-2": "a", "b": "c"}),
    ],
)
def test_keys_may_have_names(value: str, expected: dict[str, str]) -> None:
    assert named(value) == expected


def test_keys_come_from_this_process_s_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSHI_API_KEY", "web:canary")
    found = keys.keys_from_environment()
    assert found == [keys.ApiKey("web", "canary")]
    assert "canary" not in repr(found)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("web:canary1,app:canary2,web:canary3", ["web"]),
        ("canary1,key-1:canary2", ["key-1"]),
        ("key-2:canary1,canary2", ["key-2"]),
        ("web:canary,app:canary", ["web", "app"]),
        ("web:canary,canary", ["web", "key-2"]),
        ("canary,canary", ["key-1", "key-2"]),
    ],
)
def test_names_and_keys_are_there_once(value: str, names: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        named(value)
    assert "MOSHI_API_KEY" in caught.value.message
    assert all(repr(name) in caught.value.message for name in names)
    assert "canary" not in f"{caught.value.message} {caught.value.hint}"


def test_no_variable_is_no_key() -> None:
    assert keys.keys_from_environment() is None


@pytest.mark.parametrize(
    "value",
    [
        ",",
        " , ,",
        "good,sécret",
        "good,two words",
        "good,a\tb",
        "good,name:sécret",
        "good,name: two words",
        "good,name:",
    ],
)
def test_unusable_keys_are_refused_and_not_repeated(value: str) -> None:
    with pytest.raises(UsageError) as caught:
        named(value)
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


@pytest.mark.parametrize("name", ["token", "none"])
def test_names_that_mean_something_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSHI_API_KEY", f"{name}:canary")
    with pytest.raises(UsageError) as caught:
        keys.keys_from_environment()
    assert name in caught.value.message
    assert "canary" not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize("addr", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_may_be_open(addr: str) -> None:
    keys.refuse_open_server(addr)


@pytest.mark.parametrize("addr", ["0.0.0.0", "::", "192.168.1.5", "10.0.0.1", "example.org"])
def test_others_may_not(addr: str) -> None:
    with pytest.raises(UsageError) as caught:
        keys.refuse_open_server(addr)
    assert addr in caught.value.message
    assert "MOSHI_API_KEY" in str(caught.value.hint)
