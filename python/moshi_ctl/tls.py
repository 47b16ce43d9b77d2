"""Certificates: those a server shows, and those a client trusts."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, NoReturn

from moshi_ctl.errors import ClientError, UsageError

_BOTH_HINT: Final = "give --tls-cert CERT.pem and --tls-key KEY.pem, or neither"
_PEM_HINT: Final = "name a PEM file of certificates, such as the server's own or its authority's"
_CHAIN_HINT: Final = "name a PEM file of the server's certificate, then those that signed it"

# OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python gives no name.
_NO_CHECK_TIME: Final = ssl.VerifyFlags(0x200000)
_MISMATCHES: Final = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
_WEAKNESSES: Final = ("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK")
# The first with extensions, which hold the names that a certificate is for.
_VERSION: Final = 3

# What `getpeercert` calls the kinds of names.
_DNS: Final = "DNS"
_IP_ADDRESS: Final = "IP Address"


@dataclass(frozen=True)
class ServerCertificate:
    """What clients are shown of a server's certificate.

    Attributes:
        names: The host names and IP addresses that it is for.
        not_before: When it begins to be valid.
        not_after: When it expires.
    """

    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime


def check_files(certificate: Path | None, key: Path | None) -> None:
    """Refuses what a server cannot serve TLS with; whether the two belong together it says itself.

    Raises:
        UsageError: When there is one without the other, or one that cannot be read.
    """
    if certificate is None and key is None:
        return
    if certificate is None:
        raise UsageError("--tls-key: there is no certificate to it", hint=_BOTH_HINT)
    if key is None:
        raise UsageError("--tls-cert: there is no key to it", hint=_BOTH_HINT)
    _refuse_unreadable("--tls-cert", certificate)
    _refuse_unreadable("--tls-key", key)


def server_certificate(certificate: Path, key: Path) -> ServerCertificate:
    """Reads the files that a server is given, whether its certificate is valid now or not.

    A server that has them is connected to in memory, so that what holds there is what clients see.

    Args:
        certificate: A file that `check_files` lets through.
        key: Another such file.

    Raises:
        UsageError: When a server cannot use them, or clients would refuse the certificate at any
            time. Nothing of the key is in it.
    """
    clients = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    clients.check_hostname = False
    clients.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    try:
        clients.load_verify_locations(certificate)
    except ssl.SSLError as error:
        raise UsageError(
            f"--tls-cert: {certificate} holds no certificate that can be read", hint=_CHAIN_HINT
        ) from error
    shown = _shown(_serving(certificate, key), clients, certificate)
    if shown["version"] < _VERSION:
        raise UsageError(
            f"--tls-cert: {certificate} is an X.509 certificate of version {shown['version']}, "
            "which the server does not take",
            hint=f"have one of version {_VERSION} made, with the server's names as subjectAltName",
        )
    names = shown.get("subjectAltName", ())
    return ServerCertificate(
        names=tuple(_name(kind, name) for kind, name in names if kind in (_DNS, _IP_ADDRESS)),
        not_before=_time(shown["notBefore"]),
        not_after=_time(shown["notAfter"]),
    )


def trusting(authorities: Path | str) -> ssl.SSLContext:
    """What a client connects with that trusts the certificates in a PEM file, and no others.

    Raises:
        UsageError: When there are none in it, or it cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=authorities)
    except ssl.SSLError as error:
        raise UsageError(
            f"--ca: {authorities} holds no certificate that can be read", hint=_PEM_HINT
        ) from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"--ca: {authorities} cannot be read: {why}", hint=_PEM_HINT) from error
    # A server's own certificate may be trusted without the one that signed it.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def failed(place: str, error: ssl.SSLError, *, plain: str) -> ClientError:
    """Why no encrypted connection came about.

    Args:
        place: The address.
        error: What the library says.
        plain: How an address begins that is not encrypted.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return ClientError(
            f"{place}: its certificate is not trusted: {error.verify_message}",
            hint="use the name that the certificate is for; --ca FILE trusts those in a PEM file, "
            "such as one that signed itself",
        )
    return ClientError(
        f"{place}: what answers there does not speak TLS", hint=f"try {plain} instead"
    )


def _serving(certificate: Path, key: Path) -> ssl.SSLContext:
    """A server's side of connections, with these files."""

    def refuse_encrypted() -> NoReturn:
        # Without this, OpenSSL asks for the passphrase on the terminal.
        raise UsageError(
            f"--tls-key: {key} is encrypted with a passphrase, which the server cannot ask for",
            hint="decrypt it to a file that only the server's user may read: "
            "`umask 077; openssl pkey -in KEY.pem -out PLAIN.pem`",
        )

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, refuse_encrypted)
    except ssl.SSLError as error:
        if error.reason in _MISMATCHES:
            raise UsageError(
                f"--tls-key: {key} does not belong to {certificate}",
                hint="name the key that the certificate was made for; the server's own "
                "certificate comes first in its file, before those that signed it",
            ) from error
        if error.reason in _WEAKNESSES:
            raise UsageError(
                f"--tls-cert: {certificate} is too weak: {_words(error.reason)}",
                hint="have one made with ECDSA P-256, or RSA of 2048 bits or more, and SHA-256",
            ) from error
        raise UsageError(
            f"--tls-key: {key} holds no private key that can be read",
            hint="name the certificate's key in PEM: -----BEGIN PRIVATE KEY-----",
        ) from error
    return context


def _shown(server: ssl.SSLContext, clients: ssl.SSLContext, certificate: Path) -> dict[str, Any]:
    """The certificate as a client sees it that connects in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = clients.wrap_bio(to_client, to_server)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    try:
        while not _is_through(ours):
            _is_through(theirs)
    except ssl.SSLError as error:
        why = getattr(error, "verify_message", None) or _words(error.reason)
        raise UsageError(
            f"--tls-cert: clients refuse {certificate}: {why}",
            hint="have one made for servers (extendedKeyUsage serverAuth)",
        ) from error
    return dict(ours.getpeercert() or {})


def _is_through(side: ssl.SSLObject) -> bool:
    """Goes on with a handshake as far as it gets; whether that was the end of it."""
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _words(reason: str | None) -> str:
    """One of OpenSSL's reasons, such as EE_KEY_TOO_SMALL."""
    return (reason or "unknown reason").replace("_", " ").lower()


def _name(kind: str, name: str) -> str:
    # OpenSSL writes the zeros of ::1 out.
    return str(ipaddress.ip_address(name)) if kind == _IP_ADDRESS else name


def _time(text: str) -> datetime:
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(text), timezone.utc)


def _refuse_unreadable(option: str, path: Path) -> None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(
            f"{option}: {path} cannot be read: {why}",
            hint="name a PEM file that this user may read",
        ) from error
