"""Tokens of the URLs with which suspended executions are resumed: an execution and a listener, signed."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Sequence
from functools import lru_cache
from uuid import UUID

from bloxserver.production_checks import MINIMUM_SECRET_BYTES
from bloxserver.settings import Settings

LABEL = b"bloxserver resume tokens v1"
ID_BYTES = 16
DIGEST_BYTES = 32
MAX_TOKEN = 512
"""Characters. A listener's name has at most 64 bytes."""


class ResumeTokens:
    """Signs with the first of its keys and verifies with any of them (HMAC-SHA-256).

    Each key is derived from a key of `API_KEY_ENCRYPTION_KEY` with a label of its own (HKDF).
    """

    def __init__(self, keys: Sequence[str]) -> None:
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        texts = [key.encode(errors="surrogatepass") for key in keys]
        self._keys = [HKDF(SHA256(), DIGEST_BYTES, salt=None, info=LABEL).derive(text) for text in texts]

    def sign(self, execution_id: UUID, listener: str) -> str:
        """Return the token of a listener in an execution."""
        content = execution_id.bytes + listener.encode()
        return base64.urlsafe_b64encode(_digest(self._keys[0], content) + content).decode().rstrip("=")

    def read(self, token: str) -> tuple[UUID, str] | None:
        """Return the execution and the listener of a token, or None if none of the keys has signed it."""
        if len(token) > MAX_TOKEN:
            return None
        try:
            decoded = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except ValueError:
            return None
        digest, content = decoded[:DIGEST_BYTES], decoded[DIGEST_BYTES:]
        # All keys are tried, so that the time does not depend on the key.
        matches = [hmac.compare_digest(_digest(key, content), digest) for key in self._keys]
        if not any(matches) or base64.urlsafe_b64encode(decoded).decode().rstrip("=") != token:
            return None
        return UUID(bytes=content[:ID_BYTES]), content[ID_BYTES:].decode()


def _digest(key: bytes, content: bytes) -> bytes:
    return hmac.digest(key, content, "sha256")


def get_resume_tokens(settings: Settings) -> ResumeTokens | None:
    """Return the tokens of this installation, or None if `API_KEY_ENCRYPTION_KEY` is unset or contains a short key."""
    keys = settings.encryption_keys
    if not keys or any(len(key.encode(errors="surrogatepass")) < MINIMUM_SECRET_BYTES for key in keys):
        return None
    return _cached_tokens(keys)


@lru_cache(maxsize=4)
def _cached_tokens(keys: tuple[str, ...]) -> ResumeTokens:
    return ResumeTokens(keys)


def resume_url(public_url: str, token: str) -> str:
    """Return the URL of a token."""
    return f"{public_url}/resume/{token}"
