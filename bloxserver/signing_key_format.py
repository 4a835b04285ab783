"""The secrets with which messages are signed as Standard Webhooks specifies: `whsec_` and base64."""

from __future__ import annotations

import base64
import binascii

PREFIX = "whsec_"
MIN_KEY_LENGTH = 24
MAX_KEY_LENGTH = 64


def read_secret(secret: str) -> bytes:
    """Decode the key of a secret. Raises `ValueError`, whose message omits the secret."""
    encoded = secret.removeprefix(PREFIX)
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if encoded == secret or not MIN_KEY_LENGTH <= len(key) <= MAX_KEY_LENGTH:
        raise ValueError(f"the secret must be {PREFIX} and the base64 of {MIN_KEY_LENGTH} to {MAX_KEY_LENGTH} bytes")
    return key
