"""Certificates as a client meets them, and the files that a worker is given."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import msgpack
import pytest
from websockets.asyncio.server import ServerConnection, serve

from moshi_ctl import addresses, tls
from moshi_ctl.client import AsrClient
from moshi_ctl.errors import ClientError, UsageError
from moshi_ctl.monitoring import readiness, scrapes
from support import certificates, cli, expositions, speech
from support.certificates import Files
from support.expositions import Module
from support.plans import Command
from support.scripted_server import closed_port, scripted_server

TIMEOUT_S = 20.0


@pytest.fixture(name="files", scope="module")
def _files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return certificates.issue(tmp_path_factory.mktemp("certificates"))


def context(files: Files) -> ssl.SSLContext:
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(files.certificate, files.key)
    return served


class _Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        text = {"/health/ready": json.dumps({"status": "ok"})}.get(
            self.path, expositions.server(Module(frames=5))
        )
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        pass


@contextmanager
def encrypted_server(files: Files) -> Iterator[str]:
    """A server that is ready and has metrics, on a free port of loopback; its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Ready) as server:
        server.socket = context(files).wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def session(files: Files, ca: Path | None, host: str = "127.0.0.1") -> None:
    """Begins a session with a server that has these files, and leaves."""

    async def ready(connection: ServerConnection) -> None:
        await connection.send(msgpack.packb({"type": "Ready"}))
        await connection.wait_closed()

    async def run() -> None:
        async with serve(ready, "127.0.0.1", 0, ssl=context(files)) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            url = f"wss://{host}:{port}/?auth_id=canary"
            async with AsrClient(url, ca=ca):
                pass

    asyncio.run(asyncio.wait_for(run(), TIMEOUT_S))


def test_a_session_with_a_server_that_is_trusted(files: Files) -> None:
    session(files, files.authority)
    session(files, files.authority, "localhost")


def test_a_server_may_be_trusted_itself(files: Files, tmp_path: Path) -> None:
    text = files.certificate.read_text()
    end = "-----END CERTIFICATE-----\n"
    own = tmp_path / "own.pem"
    own.write_text(text[: text.index(end) + len(end)])
    session(files, own)


def test_a_session_with_one_that_is_not(files: Files, tmp_path: Path) -> None:
    other = certificates.issue(tmp_path)
    for ca in (None, other.authority):
        with pytest.raises(ClientError, match="its certificate is not trusted") as caught:
            session(files, ca)
        assert "--ca" in str(caught.value.hint)
        assert "canary" not in f"{caught.value} {caught.value.hint}"
    elsewhere = certificates.issue(tmp_path, "elsewhere", "example.org")
    with pytest.raises(ClientError, match=r"not trusted: .*127\.0\.0\.1"):
        session(elsewhere, elsewhere.authority)


def test_a_session_without_encryption_where_there_should_be_some() -> None:
    async def run(url: str) -> None:
        async with AsrClient(url):
            pass

    with scripted_server() as server, pytest.raises(ClientError, match="not speak TLS") as caught:
        asyncio.run(asyncio.wait_for(run(server.url.replace("http:", "wss:")), TIMEOUT_S))
    assert "ws://" in str(caught.value.hint)


def test_metrics_and_readiness_of_a_server_that_is_trusted(files: Files) -> None:
    with encrypted_server(files) as url:
        trust = addresses.trust(url, files.authority)
        assert scrapes.scrape(url, trust=trust).metrics.modules[0].frames == 5
        assert readiness.look(url, trust=trust).state is readiness.State.READY
        with pytest.raises(ClientError, match="its certificate is not trusted") as caught:
            scrapes.scrape(url)
        assert "--ca" in str(caught.value.hint)


@pytest.mark.parametrize(
    "arguments", [("metrics",), ("warmup",), ("warmup", "--wait"), ("metrics", "--json")]
)
def test_commands_take_an_authority(
    arguments: tuple[str, ...], files: Files, command: Command
) -> None:
    with encrypted_server(files) as url:
        said = command(*arguments, url, "--ca", files.authority)
        assert said.code == 0, said.err
        refused = command(*arguments, url)
        assert (refused.code, "not trusted" in refused.error) == (1, True)


def test_transcribe_takes_an_authority(files: Files, tmp_path: Path) -> None:
    with encrypted_server(files) as base:
        arguments = ("transcribe", speech.SPEECH, "--url", base.replace("https", "wss"))
        # What is wrong with that server shows once it is trusted.
        result = cli.run(*arguments, "--ca", files.authority, cwd=tmp_path)
        assert "does not speak WebSocket" in result.stderr
        result = cli.run(*arguments, cwd=tmp_path)
        assert "error: " in result.stderr
        assert "its certificate is not trusted" in result.stderr
        assert "Traceback" not in result.stderr


def test_an_authority_for_nothing_is_refused(files: Files, command: Command) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    for arguments in (("metrics", url), ("warmup", url)):
        said = command(*arguments, "--ca", files.authority)
        assert (said.code, "is not encrypted" in said.error) == (2, True)
        assert "https://" in said.hint
    with pytest.raises(UsageError, match="is not encrypted") as caught:
        AsrClient("ws://127.0.0.1:1/?auth_id=canary", ca=files.authority)
    assert "canary" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "No such file"), (b"", "holds no certificate"), (b"canary", "holds no certificate")],
)
def test_authorities_that_are_none(content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=said) as caught:
        AsrClient("wss://127.0.0.1:1", ca=path)
    assert str(path) in caught.value.message
    assert caught.value.hint
    with pytest.raises(UsageError, match=said):
        addresses.trust("https://127.0.0.1:1", path)


def test_files_of_a_worker(files: Files, tmp_path: Path) -> None:
    tls.check_files(None, None)
    tls.check_files(files.certificate, files.key)
    missing = tmp_path / "missing.pem"
    for certificate, key, said in (
        (files.certificate, None, "--tls-cert: there is no key to it"),
        (None, files.key, "--tls-key: there is no certificate to it"),
        (missing, files.key, f"--tls-cert: {missing} cannot be read: No such file"),
        (files.certificate, missing, f"--tls-key: {missing} cannot be read: No such file"),
        (tmp_path, files.key, "Is a directory"),
        (Path("nul\0"), files.key, "null byte"),
    ):
        with pytest.raises(UsageError) as caught:
            tls.check_files(certificate, key)
        assert said in caught.value.message
        assert caught.value.hint


def test_a_worker_says_what_is_wrong_with_them_before_all_else(
    files: Files, command: Command
) -> None:
    arguments = ("worker", "--config", "tiny-random", "-a", "127.0.0.1", "-p", "0")
    for options, said in (
        (("--tls-cert", files.certificate), "--tls-cert: there is no key to it"),
        (("--tls-key", files.key), "--tls-key: there is no certificate to it"),
        (("--tls-cert", "missing.pem", "--tls-key", files.key), "missing.pem cannot be read"),
    ):
        refused = command(*arguments, *options)
        assert (refused.code, said in refused.error) == (2, True)
        assert refused.hint
