"""Events that Clerk sends, with their signatures."""

from __future__ import annotations

import base64
import hmac
import json
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from bloxserver.clock import now

SECRET = "whsec_" + base64.b64encode(b"a signing secret of thirty-two b").decode()
NEXT_SECRET = "whsec_" + base64.b64encode(b"the signing secret after the one").decode()
ADA = "user_ada"


def profile(updated_at: int = 1_000, clerk_id: str = ADA, **changes: Any) -> dict[str, Any]:
    """The data of an event that has a profile. The email tells when it was updated."""
    return {
        "id": clerk_id,
        "object": "user",
        "updated_at": updated_at,
        "created_at": 1_000,
        "first_name": "Ada",
        "last_name": "Lovelace",
        "image_url": "https://img.clerk.com/ada.png",
        "primary_email_address_id": "idn_2",
        "email_addresses": [
            {"id": "idn_1", "email_address": "old@example.com"},
            {"id": "idn_2", "email_address": f"ada{updated_at}@example.com"},
        ],
        **changes,
    }


def created(updated_at: int = 1_000, clerk_id: str = ADA, **changes: Any) -> bytes:
    return event("user.created", profile(updated_at, clerk_id, **changes))


def updated(updated_at: int, clerk_id: str = ADA, **changes: Any) -> bytes:
    return event("user.updated", profile(updated_at, clerk_id, **changes))


def deleted(clerk_id: str = ADA) -> bytes:
    return event("user.deleted", {"id": clerk_id, "object": "user", "deleted": True})


def event(kind: str, data: Any) -> bytes:
    return json.dumps({"type": kind, "object": "event", "data": data}).encode()


def signed(body: bytes, secret: str = SECRET, *, at: datetime | None = None, message_id: str = "") -> dict[str, str]:
    """The headers of a delivery."""
    message_id = message_id or f"msg_{uuid4().hex}"
    seconds = int((at or now()).astimezone(UTC).timestamp())
    content = f"{message_id}.{seconds}.".encode() + body
    digest = hmac.digest(base64.b64decode(secret.removeprefix("whsec_")), content, "sha256")
    signature = f"v1,{base64.b64encode(digest).decode()}"
    return {"svix-id": message_id, "svix-timestamp": str(seconds), "svix-signature": signature}
