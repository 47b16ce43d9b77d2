"""JSON Web Tokens, made with nothing but the standard library."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping

CANARY = "canary secret of thirty-two bytes or more"

_DIGESTS = {"HS256": hashlib.sha256, "HS512": hashlib.sha512}


def _encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def token(
    claims: Mapping[str, object] | None = None, *, secret: str = CANARY, algorithm: str = "HS256"
) -> str:
    """A signed token, an hour long if `claims` do not say; unsigned for an unknown algorithm."""
    header = {"alg": algorithm, "typ": "JWT"}
    if claims is None:
        claims = expiring_in(3600)
    message = f"{_encoded(json.dumps(header).encode())}.{_encoded(json.dumps(claims).encode())}"
    signature = b""
    if (digest := _DIGESTS.get(algorithm)) is not None:
        signature = hmac.new(secret.encode(), message.encode(), digest).digest()
    return f"{message}.{_encoded(signature)}"


def expiring_in(seconds: float) -> dict[str, object]:
    """Claims as a sign-in service makes them; audience and issuer are not the server's."""
    now = int(time.time())
    return {
        "sub": "canary-user",
        "aud": "another",
        "iss": "somebody",
        "iat": now,
        "exp": now + seconds,
    }
