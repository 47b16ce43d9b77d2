"""Certificates: those a server shows, and those a client trusts."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from moshi_ctl.errors import ClientError, UsageError

_BOTH_HINT: Final = "give --tls-cert CERT.pem and --tls-key KEY.pem, or neither"
_PEM_HINT: Final = "name a PEM file of certificates, such as the server's own or its authority's"


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
