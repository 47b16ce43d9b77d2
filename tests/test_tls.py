"""A worker with a certificate: encrypted connections only, and the certificate may change."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from moshi_ctl import tls
from moshi_ctl.client import AsrClient
from support import certificates, cli, http, speech
from support.certificates import Files
from support.exposition import samples
from support.hearing import hears
from support.refusals import refusal
from support.waiting import wait_until
from support.worker import KEY, Worker, worker

PATH = "/api/asr-streaming"
TIMEOUT_S = 30.0
HEADERS = {"kyutai-api-key": KEY}


@pytest.fixture(name="env")
def _env(tiny_dir: Path) -> dict[str, str]:
    return {"MOSHI_CTL_TINY_DIR": str(tiny_dir), "MOSHI_API_KEY": KEY}


@pytest.fixture(name="files")
def _files(tmp_path: Path) -> Files:
    return certificates.issue(tmp_path)


@pytest.fixture(name="encrypted")
def _encrypted(files: Files, env: dict[str, str], tmp_path: Path) -> Iterator[Worker]:
    options = ("--tls-cert", str(files.certificate), "--tls-key", str(files.key))
    with worker("tiny-random", *options, cwd=tmp_path, env=env) as started:
        started.trust = tls.trusting(files.authority)
        yield started


def shown(port: int) -> bytes:
    """A fingerprint of the certificate that a server shows to whoever connects."""
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname = False
    anybody.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection,
        anybody.wrap_socket(connection) as wrapped,
    ):
        return hashlib.sha256(wrapped.getpeercert(binary_form=True) or b"").digest()


def fingerprint(files: Files) -> bytes:
    """The same of a file's first certificate."""
    text = files.certificate.read_text()
    end = "-----END CERTIFICATE-----"
    der = ssl.PEM_cert_to_DER_cert(text[: text.index(end) + len(end)])
    return hashlib.sha256(der).digest()


def test_all_that_clients_do(
    encrypted: Worker, files: Files, server: Worker, tmp_path: Path
) -> None:
    def heard(started: Worker, *options: str | Path) -> str:
        arguments = ("transcribe", speech.SPEECH, "--url", started.url, "--key", KEY)
        result = cli.run(*arguments, *options, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert encrypted.url.startswith("wss://")
    assert heard(encrypted, "--ca", files.authority) == heard(server)
    body = speech.SPEECH.read_bytes()
    answer = http.request(encrypted.port, "POST", PATH, body, HEADERS, trust=encrypted.trust)
    assert answer.status == 200
    assert answer.body == http.request(server.port, "POST", PATH, body, HEADERS).body
    refused = http.request(encrypted.port, "POST", PATH, body, trust=encrypted.trust)
    assert refused.status == 401
    for command in ("metrics", "warmup"):
        arguments = (command, encrypted.http, "--ca", files.authority)
        result = cli.run(*arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stderr


def test_nothing_is_said_in_plain_text(encrypted: Worker) -> None:
    dropped = "moshi_connections_dropped_total"
    before = samples(encrypted, reason="tls").get(dropped, 0)
    for said in (b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01" + bytes(300)):
        with socket.create_connection(("127.0.0.1", encrypted.port), TIMEOUT_S) as connection:
            connection.sendall(said)
            answer = b""
            try:
                while block := connection.recv(4096):
                    answer += block
            except ConnectionResetError:
                pass
        assert b"HTTP" not in answer
        assert b"ok" not in answer
    wait_until(lambda: samples(encrypted, reason="tls").get(dropped, 0) == before + 2)


@pytest.mark.parametrize("hang_up", [False, True])
def test_a_new_certificate_is_shown_and_sessions_go_on(
    hang_up: bool, encrypted: Worker, files: Files, tmp_path: Path
) -> None:
    old = fingerprint(files)
    assert shown(encrypted.port) == old
    new = certificates.issue(tmp_path, "new")

    def shows_new() -> bool:
        return shown(encrypted.port) == fingerprint(new)

    async def session() -> None:
        async with AsrClient(encrypted.url, key=KEY, ca=files.authority) as asr:
            await hears(asr, 1)
            files.replace_by(new)
            if hang_up:
                encrypted.process.send_signal(signal.SIGHUP)
            await asyncio.to_thread(wait_until, shows_new)
            await hears(asr, 2)

    asyncio.run(session())
    assert fingerprint(new) != old
    encrypted.trust = tls.trusting(new.authority)
    assert encrypted.get("/health/ready")
    assert str(files.certificate) in encrypted.until("certificate reloaded")


@pytest.mark.parametrize("damage", ["cut", "other key", "missing", "empty", "no text"])
def test_a_broken_certificate_is_not_taken(
    damage: str, encrypted: Worker, files: Files, tmp_path: Path
) -> None:
    old = fingerprint(files)
    named = files.certificate
    match damage:
        case "cut":
            text = files.certificate.read_bytes()
            files.certificate.write_bytes(text[: len(text) // 3])
        case "other key":
            shutil.copy(certificates.issue(tmp_path, "other").key, files.key)
        case "missing":
            files.key.unlink()
            named = files.key
        case "empty":
            files.key.write_bytes(b"")
            named = files.key
        case "no text":
            files.certificate.write_bytes(bytes(range(256)))
    said = encrypted.until("certificate not reloaded", TIMEOUT_S)
    assert " ERROR " in said
    assert "the old one stays" in said
    assert str(named) in said
    lines = len(encrypted.log)
    encrypted.process.send_signal(signal.SIGHUP)
    encrypted.until("certificate not reloaded", TIMEOUT_S, after=lines)
    assert shown(encrypted.port) == old
    assert encrypted.get("/health/ready")
    # Nothing of a private key.
    assert "PRIVATE" not in "".join(encrypted.log)
    new = certificates.issue(tmp_path, "new")
    files.replace_by(new)
    wait_until(lambda: shown(encrypted.port) == fingerprint(new))


def test_a_certificate_that_cannot_be_used_from_the_start(
    files: Files, env: dict[str, str], tmp_path: Path
) -> None:
    other = certificates.issue(tmp_path, "other")
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("canary\n")
    for certificate, key, named in (
        (files.certificate, other.key, files.certificate),
        (nothing, files.key, nothing),
        (files.certificate, nothing, nothing),
        (files.key, files.key, files.key),
        (files.certificate, files.certificate, files.certificate),
    ):
        options = ("--tls-cert", certificate, "--tls-key", key)
        error, hint = refusal("--config", "tiny-random", *options, cwd=tmp_path, env=env, code=1)
        assert str(named) in error
        assert hint
        assert "canary" not in error
