"""What `moshi-ctl doctor` says of the files that a worker serves TLS with."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from moshi_ctl import doctor
from moshi_ctl.doctor import CHECKS, Situation, Status, settings
from support import certificates
from support.certificates import Files
from support.doctor import examined

CANARY = "canary"
NAMES = "127.0.0.1, localhost"
RENEW = "renew it: a worker that runs takes the new files by itself"
ONE_OF_TWO = "give --tls-cert CERT.pem and --tls-key KEY.pem, or neither"
NO_CERTIFICATE = "name a PEM file of the server's certificate, then those that signed it"
NO_KEY = "name the certificate's key in PEM: -----BEGIN PRIVATE KEY-----"
MISMATCH = (
    "name the key that the certificate was made for; the server's own certificate comes first in "
    "its file, before those that signed it"
)

Found = list[tuple[str, str, str | None]]


@pytest.fixture(name="files")
def _files(tmp_path: Path) -> Files:
    return certificates.issue(tmp_path)


def found(certificate: Path | None, key: Path | None) -> Found:
    """Status, message and remedy of each finding; none of them shows anything of the key."""
    situation = Situation("127.0.0.1", 0, None, Path(), tls_cert=certificate, tls_key=key)
    checks = [check for check in CHECKS if check.name == "certificate"]
    findings = list(doctor.examine(situation, checks))
    assert {finding.name for finding in findings} <= {"certificate"}
    refuse_secrets("".join(f"{finding.message}{finding.remedy}" for finding in findings), key)
    return [(finding.status.value, finding.message, finding.remedy) for finding in findings]


def refuse_secrets(said: str, key: Path | None) -> None:
    assert CANARY not in said
    if key is not None and key.is_file():
        lines = key.read_text(errors="replace").splitlines()
        assert not any(line in said for line in lines if line and not line.startswith("-----"))


def failed(certificate: Path | None, key: Path | None) -> tuple[str, str | None]:
    """Message and remedy of the one finding, which is a failure."""
    ((status, message, remedy),) = found(certificate, key)
    assert status == Status.FAILURE.value
    return message, remedy


def now() -> datetime:
    return datetime.now(timezone.utc).replace(microsecond=0)


def test_nothing_is_said_where_there_are_no_files() -> None:
    assert found(None, None) == []


def test_files_as_they_should_be(tmp_path: Path) -> None:
    until = now() + timedelta(days=100)
    files = certificates.issue(
        tmp_path, "a", "example.org", "*.example.org", "::1", not_after=until
    )
    message = f"{files.certificate} for example.org, *.example.org, ::1 until {until:%Y-%m-%d}"
    assert found(files.certificate, files.key) == [("ok", message, None)]


def test_certificate_and_key_in_one_file(files: Files, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_text(f"A comment: caf\u00e9\n{files.key.read_text()}{files.certificate.read_text()}")
    ((status, message, _),) = found(both, both)
    assert (status, message.startswith(f"{both} for {NAMES} until ")) == ("ok", True)


def test_a_certificate_that_signed_itself(tmp_path: Path) -> None:
    own = [x509.SubjectAlternativeName([x509.DNSName("localhost")]), x509.BasicConstraints(True, 0)]
    files = certificates.sign_itself(tmp_path, own)
    ((status, message, _),) = found(files.certificate, files.key)
    assert (status, message.startswith(f"{files.certificate} for localhost until ")) == ("ok", True)


def test_one_without_the_other(files: Files) -> None:
    said = "--tls-cert: there is no key to it"
    assert failed(files.certificate, None) == (said, ONE_OF_TWO)
    said = "--tls-key: there is no certificate to it"
    assert failed(None, files.key) == (said, ONE_OF_TWO)


def test_files_that_cannot_be_read(files: Files, tmp_path: Path) -> None:
    readable = "name a PEM file that this user may read"
    missing = tmp_path / "missing.pem"
    said = f"--tls-cert: {missing} cannot be read: No such file or directory"
    assert failed(missing, files.key) == (said, readable)
    said = f"--tls-key: {tmp_path} cannot be read: Is a directory"
    assert failed(files.certificate, tmp_path) == (said, readable)


CONTENTS = ["nothing", "the other", "cut", "no text"]


def write_wrong(path: Path, content: str, *, right: Path, other: Path) -> None:
    """Writes something else to a file than the right one has."""
    wrong = {
        "nothing": b"",
        "the other": other.read_bytes(),
        "cut": right.read_bytes()[:100],
        "no text": bytes(range(256)),
    }
    path.write_bytes(wrong[content])


@pytest.mark.parametrize("content", CONTENTS)
def test_no_certificate_in_the_file(content: str, files: Files, tmp_path: Path) -> None:
    path = tmp_path / "other.pem"
    write_wrong(path, content, right=files.certificate, other=files.key)
    said = f"--tls-cert: {path} holds no certificate that can be read"
    assert failed(path, files.key) == (said, NO_CERTIFICATE)


@pytest.mark.parametrize("content", CONTENTS)
def test_no_key_in_the_file(content: str, files: Files, tmp_path: Path) -> None:
    path = tmp_path / "other.key"
    write_wrong(path, content, right=files.key, other=files.certificate)
    said = f"--tls-key: {path} holds no private key that can be read"
    assert failed(files.certificate, path) == (said, NO_KEY)


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_a_key_with_a_passphrase(form: PrivateFormat, files: Files) -> None:
    certificates.encrypt(files.key, CANARY, form)
    message, remedy = failed(files.certificate, files.key)
    said = f"--tls-key: {files.key} is encrypted with a passphrase, which the server cannot ask for"
    assert message == said
    assert remedy is not None
    assert "`umask 077; openssl pkey -in KEY.pem -out PLAIN.pem`" in remedy


def test_a_key_of_another_certificate(files: Files, tmp_path: Path) -> None:
    alike = certificates.issue(tmp_path, "other").key
    (tmp_path / "rsa").mkdir()
    other_sort = certificates.sign_itself(
        tmp_path / "rsa", key=rsa.generate_private_key(public_exponent=65_537, key_size=2048)
    ).key
    for key in (alike, other_sort):
        said = f"--tls-key: {key} does not belong to {files.certificate}"
        assert failed(files.certificate, key) == (said, MISMATCH)


def test_a_certificate_after_the_one_that_signed_it(files: Files) -> None:
    turned = files.authority.read_bytes() + files.certificate.read_bytes()
    files.certificate.write_bytes(turned)
    said = f"--tls-key: {files.key} does not belong to {files.certificate}"
    assert failed(files.certificate, files.key) == (said, MISMATCH)


def test_a_certificate_that_has_expired(tmp_path: Path) -> None:
    end = now() - timedelta(days=1)
    files = certificates.issue(tmp_path, not_before=end - timedelta(days=90), not_after=end)
    said = f"{files.certificate} for {NAMES} expired on {end:%Y-%m-%d}"
    assert failed(files.certificate, files.key) == (said, RENEW)


def test_a_certificate_that_is_not_valid_yet(tmp_path: Path) -> None:
    start = now() + timedelta(days=1)
    files = certificates.issue(tmp_path, not_before=start, not_after=start + timedelta(days=90))
    said = f"{files.certificate} for {NAMES} is not valid before {start:%Y-%m-%d %H:%M} UTC"
    remedy = "see whether this machine's clock is right, or use a certificate that is valid now"
    assert failed(files.certificate, files.key) == (said, remedy)


@pytest.mark.parametrize(("hours", "status"), [(-1, "warning"), (1, "ok")])
def test_a_certificate_that_expires_soon(hours: int, status: str, tmp_path: Path) -> None:
    end = now() + settings.EXPIRES_SOON + timedelta(hours=hours)
    files = certificates.issue(tmp_path, not_after=end)
    what = f"{files.certificate} for {NAMES} until {end:%Y-%m-%d}"
    expected = {
        "warning": ("warning", f"{what}, in less than 14 days", RENEW),
        "ok": ("ok", what, None),
    }
    assert found(files.certificate, files.key) == [expected[status]]


@pytest.mark.parametrize("other", [(), (x509.RFC822Name("a@example.org"),)])
def test_a_certificate_without_names(other: tuple[x509.GeneralName, ...], tmp_path: Path) -> None:
    extensions = [x509.SubjectAlternativeName(other)] if other else []
    files = certificates.sign_itself(tmp_path, extensions)
    said = f"{files.certificate} names no host or IP address as subjectAltName: clients refuse it"
    remedy = "have one made with the server's names as subjectAltName, which clients look at"
    assert found(files.certificate, files.key) == [("warning", said, remedy)]


def test_a_certificate_of_version_1(tmp_path: Path) -> None:
    files = certificates.sign_itself(tmp_path)
    certificates.of_version_1(files)
    message, remedy = failed(files.certificate, files.key)
    assert message == (
        f"--tls-cert: {files.certificate} is an X.509 certificate of version 1, which the server "
        "does not take"
    )
    assert remedy == "have one of version 3 made, with the server's names as subjectAltName"


def test_a_certificate_that_is_for_clients(tmp_path: Path) -> None:
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    files = certificates.sign_itself(tmp_path, [usage])
    message, remedy = failed(files.certificate, files.key)
    assert message.startswith(f"--tls-cert: clients refuse {files.certificate}: ")
    assert "purpose" in message
    assert remedy == "have one made for servers (extendedKeyUsage serverAuth)"


def test_a_certificate_with_a_key_that_is_too_short(tmp_path: Path) -> None:
    short = rsa.generate_private_key(public_exponent=65_537, key_size=1024)  # noqa: S505 - the point
    files = certificates.sign_itself(tmp_path, key=short)
    message, remedy = failed(files.certificate, files.key)
    assert message == f"--tls-cert: {files.certificate} is too weak: ee key too small"
    assert remedy == "have one made with ECDSA P-256, or RSA of 2048 bits or more, and SHA-256"


def test_the_command_looks_at_them(files: Files, tmp_path: Path) -> None:
    options = ("--tls-cert", files.certificate, "--tls-key", files.key)
    report = examined(*options, cwd=tmp_path)
    status, said = report.line("certificate")
    assert (status, report.code) == ("ok", 0)
    assert said.startswith(f"{files.certificate} for {NAMES} until ")
    names = [check["name"] for check in report.checks]
    assert names.index("certificate") == names.index("port") + 1
    report = examined(*options[:2], cwd=tmp_path)
    said = f"--tls-cert: there is no key to it | {ONE_OF_TWO}"
    assert (report.line("certificate"), report.code) == (("failure", said), 1)
    certificates.encrypt(files.key, CANARY)
    report = examined(*options, cwd=tmp_path)
    status, said = report.line("certificate")
    assert (status, report.code) == ("failure", 1)
    assert "is encrypted with a passphrase" in said
    refuse_secrets(report.text, files.key)
