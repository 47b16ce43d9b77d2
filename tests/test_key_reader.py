"""What the server is told of keys, at its start and each time that it asks again."""

from __future__ import annotations

from pathlib import Path

import pytest

from moshi_ctl import config, env
from moshi_ctl.config import Config
from moshi_ctl.errors import UsageError
from moshi_ctl.key_reader import KeyReader
from support import configs, tokens

LOOPBACK = "127.0.0.1"
ANYBODY = "0.0.0.0"


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, where what comes from its `.env` is forgotten afterwards."""
    for variable in (env.MOSHI_API_KEY, env.BETTER_AUTH_SECRET):
        monkeypatch.setenv(variable.name, "to be restored")
        monkeypatch.delenv(variable.name)
    monkeypatch.setattr(env, "_loaded", None)
    monkeypatch.setenv("MOSHI_CTL_TINY_DIR", str(tmp_path))
    return tmp_path


def configuration(folder: Path, *keys: str) -> Config:
    listed = ", ".join(f'"{key}"' for key in keys)
    change = ("instance_name", f"authorized_ids = [{listed}]\ninstance_name")
    return config.read(configs.tiny(folder, change))


def started(folder: Path, content: str, *listed: str, addr: str = LOOPBACK) -> KeyReader:
    """The reader of a worker that finds this `.env`."""
    (folder / ".env").write_text(content)
    env.load_dot_env(folder)
    return KeyReader(configuration(folder, *listed), addr, encrypted=True)


def test_names_keys_and_secret(folder: Path) -> None:
    read = started(folder, f"MOSHI_API_KEY=web:a,b\nBETTER_AUTH_SECRET='{tokens.CANARY}'\n")
    assert read() == {"api_keys": [("web", "a"), ("key-2", "b")], "jwt_secret": tokens.CANARY}


def test_the_configuration_s_keys_hold_where_there_are_no_others(folder: Path) -> None:
    read = started(folder, "", "listed", addr=ANYBODY)
    assert read() == {"api_keys": None, "jwt_secret": None}


def test_what_changed_in_dot_env_holds_the_next_time(folder: Path) -> None:
    read = started(folder, "MOSHI_API_KEY=old\n", "listed")
    (folder / ".env").write_text("MOSHI_API_KEY=new\n")
    assert read()["api_keys"] == [("key-1", "new")]
    (folder / ".env").unlink()
    assert read()["api_keys"] is None


def test_what_the_real_environment_says_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOSHI_API_KEY", "real")
    read = started(folder, "MOSHI_API_KEY=file\n")
    for content in ("MOSHI_API_KEY=other\n", ""):
        assert read()["api_keys"] == [("key-1", "real")]
        (folder / ".env").write_text(content)


def test_a_mistake_is_an_error_each_time_until_it_is_put_right(folder: Path) -> None:
    read = started(folder, "MOSHI_API_KEY=canary\n")
    read()
    for content, said in (
        ("MOSHI_API_KEY=web:canary1,web:canary2\n", "calls two keys 'web'"),
        ("canary\n", "line 1 names a variable without a value"),
    ):
        (folder / ".env").write_text(content)
        with pytest.raises(UsageError, match=said) as caught:
            read()
        assert caught.value.hint
        assert "canary" not in f"{caught.value} {caught.value.hint}"
    (folder / ".env").write_text("MOSHI_API_KEY=right\n")
    assert read()["api_keys"] == [("key-1", "right")]


def test_keys_that_are_gone_are_not_there(folder: Path) -> None:
    read = started(folder, "MOSHI_API_KEY=old\n", addr=ANYBODY)
    read()
    (folder / ".env").write_text("")
    # A server keeps those it has then: tests/test_key_reload.py.
    assert read() == {"api_keys": None, "jwt_secret": None}


def test_without_a_key_nobody_else_is_let_in(folder: Path) -> None:
    with pytest.raises(UsageError, match="no API key is set"):
        started(folder, "", addr=ANYBODY)


def test_warnings(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    started(folder, "")()
    (open_to_all,) = caplog.messages
    assert "no API key is set" in open_to_all
    caplog.clear()
    read = started(folder, "MOSHI_API_KEY=a\nBETTER_AUTH_SECRET=short\n")
    read()
    (short,) = caplog.messages
    assert "BETTER_AUTH_SECRET is shorter" in short


@pytest.mark.parametrize(
    ("addr", "encrypted", "warned"),
    [
        (ANYBODY, False, True),
        ("::", False, True),
        (ANYBODY, True, False),
        (LOOPBACK, False, False),
    ],
)
def test_keys_in_plain_text_are_warned_of(
    addr: str, encrypted: bool, warned: bool, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    KeyReader(configuration(folder, "listed"), addr, encrypted=encrypted)
    assert len(caplog.messages) == warned
    for message in caplog.messages:
        assert "plain text" in message
        assert "--tls-cert" in message
        assert "proxy" in message
