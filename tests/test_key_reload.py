"""Keys with names, and keys that come and go while a worker runs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from moshi_ctl import _native
from moshi_ctl.client import AsrClient
from support import cli, configs, http, speech, tokens
from support.exposition import samples
from support.hearing import hears
from support.plans import Command
from support.refusals import refusal
from support.tokens import token
from support.waiting import wait_until
from support.worker import KEY, Worker, starting, worker

PATH = "/api/asr-streaming"
TIMEOUT_S = 30.0
SECRET = "BETTER_AUTH_SECRET"  # noqa: S105 - the variable's name

Start: TypeAlias = Callable[..., AbstractContextManager[Worker]]


@pytest.fixture(name="start")
def _start(tiny_dir: Path, tmp_path: Path) -> Start:
    """Starts a worker whose keys are in `.env`, unless `variables` say otherwise."""

    def run(
        content: str, config: str | Path = "tiny-random", **variables: str
    ) -> AbstractContextManager[Worker]:
        write(tmp_path, content)
        env = {"MOSHI_CTL_TINY_DIR": str(tiny_dir), **variables}
        return worker(config, "--log", "trace", cwd=tmp_path, env=env)

    return run


def write(folder: Path, content: str) -> None:
    """Replaces `.env` in one step."""
    new = folder / ".env.new"
    new.write_text(content)
    new.replace(folder / ".env")


def opens(started: Worker, key: str) -> bool:
    """Whether a key lets a file in; what it holds is no audio."""
    answer = http.request(started.port, "POST", PATH, b"no audio", {"kyutai-api-key": key})
    assert answer.status in (400, 401, 415, 422), answer
    return answer.status != 401


def hang_up(started: Worker, expected: str) -> str:
    """Has it read its keys again, and waits for what it says of that."""
    lines = len(started.log)
    started.process.send_signal(signal.SIGHUP)
    return started.until(expected, TIMEOUT_S, after=lines)


def test_keys_come_and_go_and_sessions_stay(start: Start, tmp_path: Path) -> None:
    with start("MOSHI_API_KEY=web:canary-a,canary-b\n") as started:

        async def session() -> None:
            async with AsrClient(started.url, key="canary-a") as asr:
                await hears(asr, 1)
                write(tmp_path, "MOSHI_API_KEY=canary-b,app:canary-c\n")
                said = await asyncio.to_thread(hang_up, started, "keys reloaded")
                assert "key-1,app" in said
                assert [opens(started, key) for key in ("canary-a", "canary-b", "canary-c")] == [
                    False,
                    True,
                    True,
                ]
                # Who was let in stays.
                await hears(asr, 2)

        assert [opens(started, key) for key in ("canary-a", "canary-b", "canary-c")] == [
            True,
            True,
            False,
        ]
        asyncio.run(session())
        started.end()
    assert "canary" not in "".join(started.log)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("canary-b\n", "line 1 names a variable without a value"),
        ("MOSHI_API_KEY=web:canary-b,web:canary-c\n", "calls two keys 'web'"),
        ("MOSHI_API_KEY=web:canary-b,app:canary-b\n", "one key under two names"),
        ("MOSHI_API_KEY=canäry\n", "a character beyond ASCII"),
        ("MOSHI_API_KEY=,\n", "holds no key"),
        ("MOSHI_API_KEY=\n", "there is none any more"),
        ("", "there is none any more"),
    ],
)
def test_what_cannot_be_used_changes_nothing(
    content: str, said: str, start: Start, tmp_path: Path
) -> None:
    with start("MOSHI_API_KEY=web:canary-a\n") as started:
        write(tmp_path, content)
        line = hang_up(started, "keys not reloaded")
        assert " ERROR " in line
        assert said in line
        assert opens(started, "canary-a")
        assert not opens(started, "canary-b")
        write(tmp_path, "MOSHI_API_KEY=canary-b\n")
        hang_up(started, "keys reloaded")
        assert not opens(started, "canary-a")
        assert opens(started, "canary-b")
    assert "canary" not in "".join(started.log)


def test_a_dot_env_that_is_gone_changes_nothing(start: Start, tmp_path: Path) -> None:
    with start("MOSHI_API_KEY=a\n") as started:
        (tmp_path / ".env").unlink()
        hang_up(started, "keys not reloaded")
        assert opens(started, "a")


def test_the_real_environment_stays(start: Start, tmp_path: Path) -> None:
    with start("MOSHI_API_KEY=file\n", MOSHI_API_KEY="real") as started:
        write(tmp_path, "MOSHI_API_KEY=other\n")
        hang_up(started, "keys reloaded")
        assert [opens(started, key) for key in ("real", "file", "other")] == [True, False, False]


def test_the_secret_of_tokens_is_read_again(start: Start, tmp_path: Path) -> None:
    other = tokens.CANARY[::-1]
    with start(f"MOSHI_API_KEY=a\n{SECRET}='{tokens.CANARY}'\n") as started:
        assert opens(started, token())
        write(tmp_path, f"MOSHI_API_KEY=a\n{SECRET}='{other}'\n")
        hang_up(started, "keys reloaded")
        assert not opens(started, token())
        assert opens(started, token(secret=other))
        write(tmp_path, "MOSHI_API_KEY=a\n")
        hang_up(started, "keys reloaded")
        assert not opens(started, token(secret=other))


def test_keys_of_the_configuration_are_read_again(start: Start, tmp_path: Path) -> None:
    def listed(*keys: str) -> Path:
        entries = ", ".join(f'"{key}"' for key in keys)
        change = ("instance_name", f"authorized_ids = [{entries}]\ninstance_name")
        return configs.tiny(tmp_path, change)

    with start("", listed("web:canary-a", "canary-b")) as started:
        assert [opens(started, key) for key in ("canary-a", "canary-b")] == [True, True]
        listed("web:canary-c")
        assert "web" in hang_up(started, "keys reloaded")
        assert [opens(started, key) for key in ("canary-a", "canary-c")] == [False, True]
        for mistake in (("a:canary-d", "a:canary-e"), ("a:",)):
            listed(*mistake)
            hang_up(started, "keys not reloaded")
            assert [opens(started, key) for key in ("canary-d", "canary-c")] == [False, True]
        (tmp_path / "config.toml").write_text("authorized_ids = [canary-f\n")
        hang_up(started, "keys not reloaded")
        assert opens(started, "canary-c")
        # Others hold where there are some.
        write(tmp_path, "MOSHI_API_KEY=canary-g\n")
        hang_up(started, "keys reloaded")
        assert [opens(started, key) for key in ("canary-c", "canary-g")] == [False, True]
    assert "canary" not in "".join(started.log)


def test_keys_of_a_configuration_that_are_mistaken(tiny_dir: Path, tmp_path: Path) -> None:
    env = {"MOSHI_CTL_TINY_DIR": str(tiny_dir)}
    for listed in ('"web:canary-a", "web:canary-b"', '"a:canary", "b:canary"', '"web:"'):
        change = ("instance_name", f"authorized_ids = [{listed}]\ninstance_name")
        config = configs.tiny(tmp_path, change)
        error, _ = refusal("--config", config, cwd=tmp_path, env=env, code=2)
        assert f"{config}:" in error
        assert "authorized_ids" in error
        assert "canary" not in error


def test_a_hang_up_while_it_starts_ends_nothing_and_is_heard(
    tiny_dir: Path, tmp_path: Path
) -> None:
    config = configs.slow_to_start(tmp_path)
    write(tmp_path, "MOSHI_API_KEY=old\n")
    env = {"MOSHI_CTL_TINY_DIR": str(tiny_dir)}
    with starting(config, cwd=tmp_path, env=env) as started:
        started.until("loading the model", 60.0)
        write(tmp_path, "MOSHI_API_KEY=new\n")
        started.process.send_signal(signal.SIGHUP)
        started.wait_until_it_listens(60.0)
        wait_until(lambda: opens(started, "new"))
        assert not opens(started, "old")


def test_a_hang_up_while_it_decides_ends_nothing_either(
    command: Command, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = []

    def serve(_: Path, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        heard.append(options["read_keys"]())

    monkeypatch.setattr(_native, "serve", serve)
    command.set(MOSHI_CTL_TINY_DIR=str(tiny_dir), MOSHI_API_KEY="a:b")
    said = command("worker", "--config", "tiny-random", "--cpu", "-a", "127.0.0.1")
    assert said.code == 0, said.err
    assert heard == [{"api_keys": [("a", "b")], "jwt_secret": None}]


@pytest.fixture(name="busy")
def _busy(start: Start) -> Iterator[Worker]:
    content = f"MOSHI_API_KEY=web:canary-a,canary-b\n{SECRET}='{tokens.CANARY}'\n"
    with start(content) as started:
        yield started


def test_names_are_in_log_and_metrics_and_keys_are_not(busy: Worker) -> None:
    def counted(name: str) -> tuple[float, float]:
        found = samples(busy, key=name)
        return found["moshi_key_sessions_total"], found["moshi_key_sessions_open"]

    async def session(key: str, name: str) -> None:
        async with AsrClient(busy.url, key=key) as asr:
            await hears(asr, 1)
            total, is_open = counted(name)
            assert (total, is_open) == (1, 1)

    names = {"canary-a": "web", "canary-b": "key-2", token(): "token"}
    for key, name in names.items():
        asyncio.run(session(key, name))
        wait_until(lambda name=name: counted(name) == (1, 0))  # type: ignore[misc]
    body = speech.SPEECH.read_bytes()
    answer = http.request(busy.port, "POST", PATH, body, {"kyutai-api-key": "canary-a"})
    assert answer.status == 200
    wait_until(lambda: counted("web") == (2, 0))
    metrics = busy.get("/metrics")
    title = Path(f"/proc/{busy.process.pid}/cmdline").read_bytes()
    assert b"worker" in title
    busy.end()
    log = "".join(busy.log)
    for name in names.values():
        assert f"key={name}" in log.replace('"', "")
    for said in (log, metrics, os.fsdecode(title)):
        assert "canary" not in said
        assert not any(part in said for part in token().split("."))


def test_nobody_s_sessions_have_a_name_too(start: Start) -> None:
    with start("") as started:
        body = speech.SPEECH.read_bytes()
        assert http.request(started.port, "POST", PATH, body).status == 200
        wait_until(lambda: samples(started, key="none").get("moshi_key_sessions_total") == 1)


def test_the_client_sends_the_first_key_without_its_name(server: Worker, tmp_path: Path) -> None:
    arguments = ("transcribe", speech.SPEECH, "--url", server.url)
    for listed in (f"web:{KEY}", f"web:{KEY},app:other", KEY):
        result = cli.run(*arguments, cwd=tmp_path, env={"MOSHI_API_KEY": listed})
        assert result.returncode == 0, result.stderr
    result = cli.run(*arguments, cwd=tmp_path, env={"MOSHI_API_KEY": f"web:other,app:{KEY}"})
    assert "does not know this key" in result.stderr
