"""Signs outgoing webhooks as Standard Webhooks specifies, so that a receiver can verify the sender."""

from __future__ import annotations

from datetime import UTC, datetime

from standardwebhooks import Webhook

from bloxserver.signing_key_format import read_secret


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
