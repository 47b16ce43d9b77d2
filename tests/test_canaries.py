"""No key, token or secret is ever shown, whatever happens and wherever one looks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from moshi_ctl import tls
from moshi_ctl.client import AsrClient
from support import certificates, cli, configs, http, speech, tokens
from support.certificates import Files
from support.collector import Collector, collector
from support.hearing import hears
from support.tokens import expiring_in, token
from support.worker import Worker, worker

PATH = "/api/asr-streaming"
HEADER = "kyutai-api-key"
KEYS = ("canary-one", "canary-two")
UNKNOWN = "canary-three"
TIMEOUT_S = 30.0

# As text, as a debugger shows bytes, and in hexadecimal digits.
CANARIES = ("canary", "99, 97, 110, 97, 114, 121", "63616e617279")

TOKENS = {
    "good": token(),
    "expired": token(expiring_in(-1)),
    "another algorithm": token(algorithm="HS512"),
    "unsigned": token(algorithm="none"),
    "claims that are none": ".".join([*token().split(".")[:1], "canary", "canary"]),
    "huge": f"{token()}{'canary' * 1000}",
}

ROUTES = (
    "/", "/index.html", "/canary.html", "/api/build_info", "/api/modules_info", "/metrics",
    "/health/live", "/health/ready", PATH, "/api/nothing", "/api/../../etc/passwd",
)  # fmt: skip


@pytest.fixture(name="sink")
def _sink() -> Iterator[Collector]:
    with collector() as started:
        yield started


@pytest.fixture(name="files")
def _files(tmp_path: Path) -> Files:
    return certificates.issue(tmp_path)


def dot_env(folder: Path, *lines: str) -> None:
    """Keys, a secret, and whatever else is in `.env`."""
    named = f"web:{KEYS[0]},{KEYS[1]}"
    secret = f"BETTER_AUTH_SECRET='{tokens.CANARY}'"
    (folder / ".env").write_text("\n".join([f"MOSHI_API_KEY={named}", secret, *lines, ""]))


def places(key: str) -> Iterator[tuple[str, dict[str, str]]]:
    """What is added to a path, and the headers, for each place of a key."""
    quoted = urllib.parse.quote(key, safe="")
    yield "", {HEADER: key}
    yield f"?auth_id={quoted}", {}
    # Where no key belongs, but where somebody may put one.
    yield f"?key={quoted}&auth_id=", {"authorization": f"Bearer {key}", "cookie": f"key={key}"}
    yield f"?auth_id={quoted}&auth_id={quoted}", {"user-agent": key, "referer": f"http://a/?{key}"}


async def sessions(started: Worker) -> None:
    """Sessions with keys that hold, in both places, and with others."""
    for key in (*KEYS, token()):
        for query, headers in list(places(key))[:2]:
            url = f"{started.url}{query}"
            async with connect(
                url, additional_headers=headers, ssl=started.trust, proxy=None
            ) as session:
                await asyncio.wait_for(session.recv(), TIMEOUT_S)
                # A message that is none, with a key in it.
                await session.send(b"canary")
                with contextlib.suppress(Exception):
                    while True:
                        await asyncio.wait_for(session.recv(), TIMEOUT_S)
    for key in (UNKNOWN, *TOKENS.values()):
        for query, headers in places(key):
            if len(key) > 4000 and "user-agent" in headers:
                continue
            with contextlib.suppress(InvalidStatus):
                url = f"{started.url}{query}"
                async with connect(url, additional_headers=headers, ssl=started.trust, proxy=None):
                    pass


def by_hand(started: Worker, *requests: bytes, encrypted: bool = True) -> bytes:
    """What a server answers to bytes that no client library sends."""
    said = b""
    for request in requests:
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(
                socket.create_connection(("127.0.0.1", started.port), TIMEOUT_S)
            )
            if encrypted:
                assert started.trust is not None
                connection = stack.enter_context(
                    started.trust.wrap_socket(connection, server_hostname="127.0.0.1")
                )
            with contextlib.suppress(OSError):
                connection.sendall(request)
            with contextlib.suppress(OSError):
                connection.settimeout(TIMEOUT_S)
                while block := connection.recv(65_536):
                    said += block
    return said


@pytest.mark.parametrize("line_format", ["text", "json"])
def test_through_every_route_and_failure(
    line_format: str, sink: Collector, files: Files, tiny_dir: Path, tmp_path: Path
) -> None:
    logs, static = tmp_path / "logs", tmp_path / "static"
    static.mkdir()
    (static / "index.html").write_text("hello")
    config = configs.tiny(
        tmp_path,
        ("$MOSHI_CTL_TINY_DIR/logs", str(logs)),
        ("$MOSHI_CTL_TINY_DIR/static", str(static)),
    )
    dot_env(tmp_path)
    env = {
        "MOSHI_CTL_TINY_DIR": str(tiny_dir),
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=canary-of-the-collector",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    options = (
        *("--log", "trace", "--log-format", line_format, "--otlp-endpoint", sink.endpoint),
        *("--tls-cert", str(files.certificate), "--tls-key", str(files.key)),
    )
    shown: list[bytes] = []

    def ask(started: Worker, method: str, path: str, body: bytes, key: str) -> None:
        for query, headers in places(key):
            answer = http.request(
                started.port, method, f"{path}{query}", body, headers, trust=started.trust
            )
            shown.extend([answer.body, json.dumps(answer.headers).encode()])

    with worker(config, *options, cwd=tmp_path, env=env) as started:
        started.trust = tls.trusting(files.authority)
        for key in (KEYS[0], UNKNOWN, token()):
            for path in ROUTES:
                ask(started, "GET", path, b"", key)
            ask(started, "POST", PATH, b"no audio", key)
            ask(started, "DELETE", PATH, b"", key)
        for key in TOKENS.values():
            if len(key) < 4000:
                ask(started, "POST", PATH, b"no audio", key)
        body = speech.SPEECH.read_bytes()
        ask(started, "POST", PATH, body, KEYS[1])
        asyncio.run(sessions(started))
        line = f"GET {PATH}?auth_id={UNKNOWN} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
        answers = by_hand(
            started,
            f"{line}{HEADER}: {UNKNOWN}\r\n{HEADER}: {KEYS[0]}\r\n\r\n".encode(),
            f"{line}{HEADER}: {UNKNOWN}".encode() + b"\xff\xfe\r\n\r\n",
            f"{line}{HEADER}: {'canary' * 1400}\r\n\r\n".encode(),
            f"{line}{HEADER}: {'canary' * 20_000}\r\n\r\n".encode(),
            f"canary {PATH}?auth_id={UNKNOWN}\r\n\r\n".encode(),
            f"{line}canary canary\r\n\r\n".encode(),
            f"{line}Content-Length: canary\r\n\r\n".encode(),
        )
        for status in (b" 400 ", b" 401 ", b" 431 "):
            assert b"HTTP/1.1" + status in answers, answers
        shown.append(answers)
        plain = f"{line}{HEADER}: {KEYS[0]}\r\n\r\n".encode()
        shown.append(by_hand(started, plain, b"canary", encrypted=False))

        # Keys that are read again, and cannot be.
        for lines, said in (
            (["canary"], "keys not reloaded"),
            (["'canary=canary'=canary"], "keys not reloaded"),
            (["canary canary"], "keys reloaded"),
            ([f"MOSHI_API_KEY=web:{KEYS[0]},app:{KEYS[0]}"], "keys not reloaded"),
            ([f"MOSHI_API_KEY=canary\u00e4,{KEYS[0]}"], "keys not reloaded"),
            ([], "keys reloaded"),
        ):
            dot_env(tmp_path, *lines)
            before = len(started.log)
            started.process.send_signal(signal.SIGHUP)
            started.until(said, TIMEOUT_S, after=before)
        asyncio.run(_one_session(started, files))
        shown += [started.get(path).encode() for path in ("/metrics", "/api/modules_info")]
        shown.append(Path(f"/proc/{started.process.pid}/cmdline").read_bytes())
        assert started.end() == 0

    shown.append("".join(started.log).encode())
    logged = [path.read_bytes() for path in logs.rglob("*") if path.is_file()]
    exported = [body for _, _, body in sink.requests]
    assert all((logged, exported, sink.named("session")))
    # The names of keys are what is shown of them.
    assert any(b"web" in text for text in logged)
    private = files.key.read_text().splitlines()[1]
    for text in (*shown, *logged, *exported):
        for canary in (*CANARIES, private):
            assert canary.encode() not in text, text[:20_000]
        assert not any(part.encode() in text for part in token().split("."))


async def _one_session(started: Worker, files: Files) -> None:
    async with AsrClient(started.url, key=KEYS[1], ca=files.authority) as asr:
        await hears(asr)


def failing_starts(folder: Path) -> Iterator[tuple[str, list[str], list[str], dict[str, str]]]:
    """What fails: what it is, lines of `.env`, options, and variables."""
    yield "no file", [], [], {"MOSHI_CTL_TINY_DIR": "/nowhere"}
    yield "broken .env", ["canary"], [], {}
    yield "one name twice", ["MOSHI_API_KEY=a:canary1,a:canary2"], [], {}
    yield "no header", ["MOSHI_API_KEY='canary canary'"], [], {}
    yield "secret", [], [], {"BETTER_AUTH_SECRET": "canary\udcff"}
    yield "address", [], ["--addr", "nowhere"], {}
    yield "collector", [], ["--otlp-endpoint", "http://canary:canary@127.0.0.1:1"], {}
    cert = folder / "cert.pem"
    cert.write_text("canary\n-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----\n")
    yield "certificate", [], ["--tls-cert", str(cert), "--tls-key", str(cert)], {}


def test_through_starts_that_fail(tiny_dir: Path, tmp_path: Path) -> None:
    config = configs.tiny(
        tmp_path,
        ("$MOSHI_CTL_TINY_DIR/logs", str(tmp_path / "logs")),
        ("instance_name", 'authorized_ids = ["canary-of-the-file"]\ninstance_name'),
    )
    base = {"MOSHI_CTL_TINY_DIR": str(tiny_dir)}
    for what, lines, options, variables in failing_starts(tmp_path):
        dot_env(tmp_path, *lines)
        result = cli.run(
            *("worker", "--config", config, "-a", "127.0.0.1", "-p", "0", "--log", "trace"),
            *options,
            cwd=tmp_path,
            env={**base, **variables},
        )
        assert result.returncode in (1, 2), what
        assert "error: " in result.stderr, what
        said = result.stdout + result.stderr
        assert not any(canary in said for canary in CANARIES), f"{what}: {said}"
    text = config.read_text()
    for mistake in ('{ a = "canary" }', '["canary", canary]', '["a:canary1", "a:canary2"]'):
        config.write_text(text.replace('["canary-of-the-file"]', mistake))
        result = cli.run("worker", "--config", config, "-p", "0", cwd=tmp_path, env=base)
        assert result.returncode == 2
        assert "canary" not in result.stdout + result.stderr
    logged = "".join(path.read_text() for path in (tmp_path / "logs").iterdir())
    assert logged
    assert "canary" not in logged
