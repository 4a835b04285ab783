"""Signs outgoing webhooks as Standard Webhooks specifies, so that a receiver can verify the sender."""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime

from standardwebhooks import Webhook

PREFIX = "whsec_"
MIN_KEY_LENGTH = 24
MAX_KEY_LENGTH = 64


def sign(secret: str, message_id: str, timestamp: datetime, body: bytes) -> dict[str, str]:
    """Return the headers of a signed message. The signature covers its id, its timestamp and its body, which is UTF-8.

    `secret` is `whsec_` and the base64 of 24 to 64 bytes. Raises `ValueError` if it is not; the message omits it.
    """
    moment = timestamp.astimezone(UTC)
    return {
        **identify(message_id, moment),
        "webhook-signature": Webhook(read_secret(secret)).sign(message_id, moment, body.decode()),
    }


def identify(message_id: str, timestamp: datetime) -> dict[str, str]:
    """Return the headers of a message without a signature."""
    return {"webhook-id": message_id, "webhook-timestamp": str(int(timestamp.timestamp()))}


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
