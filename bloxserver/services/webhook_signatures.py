"""Verifies the senders of webhooks with the signing secrets of the webhook, or with a secret of its owner."""

from __future__ import annotations

from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.encryption import get_cipher
from bloxserver.errors import Unauthorized
from bloxserver.queries.triggers import TriggerRow
from bloxserver.services.secrets import read_values
from bloxserver.services.signing_secrets import read_signing_secrets
from bloxserver.services.webhook_schemes import Headers, Signature, SignatureInvalid, signature_of
from bloxserver.settings import get_settings

CHALLENGES = {"basic": 'Basic realm="webhook", charset="UTF-8"', "bearer": "Bearer"}


class InvalidSignature(Unauthorized):
    """The sender of a webhook is not proven. The response is the same for all reasons."""

    def __init__(self, scheme: str, reason: str) -> None:
        """`reason` is for the owner of the webhook."""
        super().__init__("invalid_signature", "The signature of the webhook is missing or invalid")
        self.headers = {"WWW-Authenticate": CHALLENGES.get(scheme, "Signature")}
        self.reason = reason


async def verify_signature(
    session: AsyncSession, webhook: TriggerRow, body: bytes, headers: Headers
) -> Signature | None:
    """Verify the sender if the webhook's config requires it, and return how. Raises `InvalidSignature`."""
    try:
        signature = signature_of(webhook.config)
    except ValidationError:
        raise InvalidSignature("", "The signature in the config of the webhook is invalid") from None
    if signature is None:
        return None
    secrets = await _usable_secrets(session, webhook, signature)
    try:
        signature.verify(secrets, body, headers, now())
    except SignatureInvalid as invalid:
        raise InvalidSignature(signature.scheme, str(invalid)) from None
    return signature


async def _usable_secrets(session: AsyncSession, webhook: TriggerRow, signature: Signature) -> list[str]:
    cipher = get_cipher(get_settings())
    found = await read_signing_secrets(session, cipher, webhook.user_id, webhook.trigger_id)
    if signature.secret is not None:
        read = await read_values(session, cipher, webhook.user_id, [signature.secret])
        found += read.values.values()
    usable = []
    for secret in found:
        try:
            signature.check_secret(secret)
        except ValueError:
            continue  # it was created for another scheme
        usable.append(secret)
    if not usable:
        raise InvalidSignature(
            signature.scheme, "The webhook has no signing secret that the server can decrypt and its scheme can use"
        )
    return usable
