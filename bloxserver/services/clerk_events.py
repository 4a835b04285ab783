"""Events of Clerk about its users: https://clerk.com/docs/guides/development/webhooks/overview.

Clerk delivers an event several times, late, or after a newer one. So an event is applied only if it is not older than
what is stored, and nothing revives a deleted user. A repeated event changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, NoReturn, TypeVar

import sqlalchemy as sa
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clients.identities import RESERVED
from bloxserver.clock import now
from bloxserver.errors import BadRequest, NotFound, Unprocessable
from bloxserver.models.enums import Tier
from bloxserver.models.tables import UserRecord
from bloxserver.services.account_deletions import delete_identity
from bloxserver.services.users import (
    MAX_EMAIL_LENGTH,
    MAX_NAME_LENGTH,
    MAX_URL_LENGTH,
    insert_user,
    profile_text,
    unknown_email,
)
from bloxserver.services.webhook_schemes import Headers, SignatureInvalid, StandardWebhooks
from bloxserver.settings import get_settings
from bloxserver.storable import check_storable

SCHEME = StandardWebhooks(scheme="standard-webhooks")
MAX_MILLISECONDS = 253_402_300_799_999
"""The last millisecond of the year 9999."""

Model = TypeVar("Model", bound=BaseModel)


def _of_clerk(identity: str) -> str:
    if identity.startswith(RESERVED):
        raise PydanticCustomError("identity_reserved", "Not the id of a user of Clerk")
    return identity


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _Event(_Model):
    type: str
    data: dict[str, Any]
    timestamp: Any = None
    """When Clerk created the event, in milliseconds since 1970. It is not required, so that none is refused."""


class _User(_Model):
    id: Annotated[str, Field(min_length=1, max_length=255, pattern="^[!-~]+$"), AfterValidator(_of_clerk)]


class _EmailAddress(_Model):
    id: str
    email_address: str


class _Profile(_User):
    updated_at: Annotated[int, Field(ge=0, le=MAX_MILLISECONDS)]
    primary_email_address_id: str | None
    email_addresses: list[_EmailAddress]
    first_name: str | None = None
    last_name: str | None = None
    image_url: str | None = None

    def columns(self) -> dict[str, Any]:
        """The columns of the user's row that Clerk determines."""
        emails = {email.id: email.email_address for email in self.email_addresses}
        email = profile_text(emails.get(self.primary_email_address_id or ""), MAX_EMAIL_LENGTH)
        names = [name for name in (self.first_name, self.last_name) if name]
        return {
            "email": email or unknown_email(self.id),
            "name": profile_text(" ".join(names), MAX_NAME_LENGTH),
            "avatar_url": profile_text(self.image_url, MAX_URL_LENGTH),
            "clerk_updated_at": self.updated_at,
        }


async def receive_event(session: AsyncSession, body: bytes, headers: Headers) -> float | None:
    """Verify an event and apply it. Events of unknown types are accepted and change nothing.

    Returns when Clerk created the event, in seconds since 1970; None if the event does not have it.

    Raises `NotFound` without `CLERK_WEBHOOK_SECRET`, `BadRequest` for a wrong signature or malformed JSON, and
    `Unprocessable` for a body that is no event.
    """
    secrets = get_settings().clerk_webhook_secrets
    if not secrets:
        raise NotFound("Webhook")
    try:
        SCHEME.verify(secrets, body, headers, now())
    except SignatureInvalid:
        raise BadRequest("invalid_signature", "The signature of the webhook is missing or invalid") from None
    event = _validated(_Event, _parsed(body), "body")
    if event.type in ("user.created", "user.updated"):
        await _store_profile(session, _validated(_Profile, event.data, "body.data"))
    elif event.type == "user.deleted":
        await delete_identity(session, _validated(_User, event.data, "body.data").id)
    milliseconds = event.timestamp
    is_time = isinstance(milliseconds, int) and 0 < milliseconds <= MAX_MILLISECONDS
    return milliseconds / 1000 if is_time else None


async def _store_profile(session: AsyncSession, profile: _Profile) -> None:
    """Create the user, or change the stored profile unless it is newer or the user was deleted."""
    columns = profile.columns()
    if await insert_user(session, profile.id, {**columns, "tier": Tier(get_settings().default_tier)}):
        return
    stored = sa.select(UserRecord).where(UserRecord.clerk_id == profile.id)
    user = await session.scalar(stored.with_for_update(key_share=True).execution_options(populate_existing=True))
    if user is None or user.deleted_at is not None:
        return
    if user.clerk_updated_at is None or user.clerk_updated_at <= profile.updated_at:
        for name, value in columns.items():
            setattr(user, name, value)


def _parsed(body: bytes) -> Any:
    """The JSON value of the body. Raises `BadRequest` and `Unprocessable`."""
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise BadRequest("invalid_json", "The body is not JSON") from None
    try:
        check_storable(value)
    except PydanticCustomError as invalid:
        raise Unprocessable({"body": invalid.message()}) from None
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _validated(model: type[Model], value: Mapping[str, Any], place: str) -> Model:
    try:
        return model.model_validate(value)
    except ValidationError as invalid:
        found = invalid.errors(include_url=False, include_input=False, include_context=False)
        raise Unprocessable({".".join([place, *map(str, error["loc"])]): error["msg"] for error in found}) from None
