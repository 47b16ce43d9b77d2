"""Certificates of authorities that live as long as a test."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)


@dataclass(frozen=True)
class Files:
    """A certificate for a server on loopback, in PEM files.

    Attributes:
        certificate: The certificate, with what it was signed with.
        key: Its private key.
        authority: What signed it, for clients to trust.
    """

    certificate: Path
    key: Path
    authority: Path

    def replace_by(self, other: Files) -> None:
        """Puts another certificate and key into the place of these, each file in one step."""
        for ours, theirs in ((self.certificate, other.certificate), (self.key, other.key)):
            copy = ours.with_suffix(".new")
            copy.write_bytes(theirs.read_bytes())
            copy.replace(ours)


def issue(
    folder: Path,
    name: str = "server",
    *hosts: str,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
) -> Files:
    """Writes a new certificate, of a new authority, for these hosts or for this machine.

    It is valid now and for years, unless something else is said.
    """
    authority = trustme.CA()
    issued = authority.issue_cert(
        *(hosts or ("127.0.0.1", "localhost")), not_before=not_before, not_after=not_after
    )
    files = Files(folder / f"{name}.pem", folder / f"{name}.key", folder / f"{name}-ca.pem")
    files.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    files.key.write_bytes(issued.private_key_pem.bytes())
    files.authority.write_bytes(authority.cert_pem.bytes())
    return files


def sign_itself(
    folder: Path,
    extensions: Sequence[x509.ExtensionType] = (),
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
) -> Files:
    """Writes a certificate that signed itself, with these extensions and no others: no names."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(timezone.utc)
    builder = x509.CertificateBuilder(
        issuer_name=name,
        subject_name=name,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - timedelta(days=1),
        not_valid_after=now + timedelta(days=365),
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    files = Files(folder / "own.pem", folder / "own.key", folder / "own.pem")
    files.certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    files.key.write_bytes(plain)
    return files


def of_version_1(files: Files) -> None:
    """Makes a certificate without extensions one of X.509 version 1, with a signature of before."""
    version_3, version_1 = b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x00"
    der = ssl.PEM_cert_to_DER_cert(files.certificate.read_text())
    assert der.count(version_3) == 1
    files.certificate.write_text(ssl.DER_cert_to_PEM_cert(der.replace(version_3, version_1)))


def encrypt(key: Path, passphrase: str, form: PrivateFormat = PrivateFormat.PKCS8) -> None:
    """Encrypts a private key where it is."""
    plain = load_pem_private_key(key.read_bytes(), None)
    with_passphrase = BestAvailableEncryption(passphrase.encode())
    key.write_bytes(plain.private_bytes(Encoding.PEM, form, with_passphrase))
