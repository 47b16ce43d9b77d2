"""JSON Web Tokens as keys, with a real worker over real sockets."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from support import cli, configs, speech, tokens
from support.http import request
from support.tokens import expiring_in, token
from support.worker import KEY, Worker, worker

PATH = "/api/asr-streaming"
PLACES = ("header", "query")


@pytest.fixture(name="secured", scope="module")
def _secured(tiny_dir: Path) -> Iterator[Worker]:
    env = {
        "MOSHI_CTL_TINY_DIR": str(tiny_dir),
        "MOSHI_API_KEY": KEY,
        "BETTER_AUTH_SECRET": tokens.CANARY,
    }
    with worker("tiny-random", cwd=tiny_dir, env=env) as started:
        yield started


def asked_with(key: str | None, place: str) -> tuple[str, dict[str, str]]:
    """Path and headers of a request with this key."""
    if key is None:
        return PATH, {}
    return (PATH, {"kyutai-api-key": key}) if place == "header" else (f"{PATH}?auth_id={key}", {})


def statuses(server: Worker, key: str | None, place: str = "header") -> tuple[int, int]:
    """What a WebSocket and a POST are answered."""
    path, headers = asked_with(key, place)

    async def upgrade() -> int:
        url = f"ws://127.0.0.1:{server.port}{path}"
        try:
            async with connect(url, additional_headers=headers, proxy=None) as session:
                await asyncio.wait_for(session.recv(), 10)
                return session.response.status_code if session.response else 0
        except InvalidStatus as error:
            return error.response.status_code

    audio = speech.SPEECH.read_bytes()
    return asyncio.run(upgrade()), request(server.port, "POST", path, audio, headers).status


@pytest.mark.parametrize("place", PLACES)
def test_a_token_is_a_key(secured: Worker, place: str) -> None:
    assert statuses(secured, token(), place) == (101, 200)
    begun = {**expiring_in(60), "nbf": int(time.time()) - 1}
    assert statuses(secured, token(begun), place) == (101, 200)


@pytest.mark.parametrize("place", PLACES)
def test_a_plain_key_still_is_one(secured: Worker, place: str) -> None:
    assert statuses(secured, KEY, place) == (101, 200)


def refused() -> dict[str, str | None]:
    good = token()
    head, claims, signature = good.split(".")
    _, longer, _ = token(expiring_in(7200)).split(".")
    later = {**expiring_in(3600), "nbf": int(time.time()) + 60}
    return {
        "nothing": None,
        "expired": token(expiring_in(-1)),
        "expires now": token(expiring_in(0)),
        "no exp": token({"sub": "user"}),
        "not yet": token(later),
        "another secret": token(secret=tokens.CANARY[::-1]),
        "HS512": token(algorithm="HS512"),
        "RS256": f"{token(algorithm='RS256')}{signature}",
        "none": token(algorithm="none"),
        "unsigned": f"{head}.{claims}.",
        "without signature": f"{head}.{claims}",
        "truncated": good[:-4],
        "changed": f"{head}.{longer}.{signature}",
        "huge": f"{head}.{'A' * 30_000}.{signature}",
        "dots": "..",
    }


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", list(refused()))
def test_others_are_refused(secured: Worker, name: str, place: str) -> None:
    assert statuses(secured, refused()[name], place) == (401, 401)


def test_the_command_line_takes_a_token(secured: Worker, tmp_path: Path) -> None:
    arguments = ("transcribe", speech.SPEECH, "--url", secured.url, "--key")
    assert cli.run(*arguments, token(), cwd=tmp_path).returncode == 0
    result = cli.run(*arguments, token(expiring_in(-1)), cwd=tmp_path)
    assert result.returncode == 1
    assert "does not know this key" in result.stderr


def test_a_secret_alone_closes_the_server_and_nothing_of_it_is_logged(
    tiny_dir: Path, tmp_path: Path
) -> None:
    config = configs.tiny(tmp_path, ("$MOSHI_CTL_TINY_DIR/logs", str(tmp_path / "logs")))
    env = {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "BETTER_AUTH_SECRET": tokens.CANARY}
    keys = {name: key for name, key in refused().items() if name != "dots"}
    with worker(config, "--log", "trace", cwd=tmp_path, env=env) as started:
        for place in PLACES:
            assert statuses(started, token(), place) == (101, 200)
            for key in (KEY, *keys.values()):
                assert statuses(started, key, place) == (401, 401)
        started.end()
    said = "".join(started.log)
    logged = "".join(path.read_text() for path in (tmp_path / "logs").rglob("*") if path.is_file())
    assert " WARN " not in said
    # Why, but not what.
    for reason in ("expired", "not signed with the secret", "another algorithm"):
        assert reason in said
        assert reason in logged
    parts = {part for key in (token(), *keys.values()) for part in (key or "").split(".")}
    for part in {"canary", "auth_id", *(part for part in parts if part)}:
        assert part not in said
        assert part not in logged


def test_a_secret_lets_a_server_leave_loopback(tiny_dir: Path, tmp_path: Path) -> None:
    def error(secret: str) -> tuple[int, str]:
        env = {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "BETTER_AUTH_SECRET": secret}
        # A taken port ends it right after the keys are looked at.
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            result = cli.run(
                "worker",
                "--config",
                "tiny-random",
                "-a",
                "0.0.0.0",
                "-p",
                port,
                cwd=tmp_path,
                env=env,
            )
        assert "Traceback" not in result.stderr
        return result.returncode, result.stderr

    code, said = error(tokens.CANARY)
    assert (code, "is in use" in said) == (1, True), said
    code, said = error(" ")
    assert (code, "no API key is set" in said) == (2, True), said
    assert "MOSHI_API_KEY" in said


@pytest.mark.parametrize(("length", "warned"), [(31, True), (32, False)])
def test_a_short_secret_is_warned_of(
    length: int, warned: bool, tiny_dir: Path, tmp_path: Path
) -> None:
    secret = ("canary" * 6)[:length]
    env = {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "BETTER_AUTH_SECRET": secret}
    with worker("tiny-random", cwd=tmp_path, env=env) as started:
        assert statuses(started, token(secret=secret)) == (101, 200)
        said = "".join(started.log)
    warnings = [line for line in said.splitlines() if " WARN moshi_ctl: " in line]
    assert len(warnings) == warned
    assert all("BETTER_AUTH_SECRET" in line and "32 bytes" in line for line in warnings)
    assert "canary" not in said


def test_a_secret_that_is_no_text_is_refused(tiny_dir: Path, tmp_path: Path) -> None:
    env = {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "BETTER_AUTH_SECRET": "canary\udcff"}
    result = cli.run("worker", "--config", "tiny-random", cwd=tmp_path, env=env)
    assert result.returncode == 2
    assert "error: BETTER_AUTH_SECRET is not UTF-8 text" in result.stderr
    assert "hint: " in result.stderr
    assert "canary" not in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
