"""Certificates of authorities that live as long as a test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme


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


def issue(folder: Path, name: str = "server", *hosts: str) -> Files:
    """Writes a new certificate, of a new authority, for these hosts or for this machine."""
    authority = trustme.CA()
    issued = authority.issue_cert(*(hosts or ("127.0.0.1", "localhost")))
    files = Files(folder / f"{name}.pem", folder / f"{name}.key", folder / f"{name}-ca.pem")
    files.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    files.key.write_bytes(issued.private_key_pem.bytes())
    files.authority.write_bytes(authority.cert_pem.bytes())
    return files
