from __future__ import annotations

from uuid import UUID

from pydantic import Field, JsonValue

from bloxserver.clock import UtcTime
from bloxserver.json_models import CamelModel
from bloxserver.models.enums import ActorKind, AuditAction


class AuditEvent(CamelModel):
    """A change of the account: who changed what, from where, and the values before and after."""

    id: UUID
    created_at: UtcTime
    actor: ActorKind
    actor_id: str | None = Field(description="The id of the user or of the API key; null for an operator.")
    action: AuditAction | str = Field(description="What was done. New versions of the server may add actions.")
    resource_id: str = Field(description="The id of what was changed; the name of a secret.")
    flow_id: UUID | None = Field(description="The flow to which the resource belongs, or which it is.")
    address: str | None = Field(description="The address of the client; null for an operator.")
    request_id: str | None = Field(description="The `X-Request-Id` of the request; null for an operator.")
    before: dict[str, JsonValue] | None = Field(description="The changed members before the change.")
    after: dict[str, JsonValue] | None = Field(description="The changed members after the change.")


class AuditEventPage(CamelModel):
    """A page of the audit log."""

    items: list[AuditEvent]
    next_cursor: str | None = Field(
        description="The `cursor` of the next page; null on the last page. With filters, a page finds events among "
        "10,000 of the account, so that it may have few or none although there are more pages."
    )
