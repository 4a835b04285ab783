"""The audit log: which user, API key or operator changed what, from where, with the values before and after.

Each function that changes something for them calls `record` in the transaction of the change.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.enums import ActorKind, AuditAction
from bloxserver.models.tables import AuditEventRecord

NOT_RECORDED = "[not recorded]"
"""Stands for a value that may contain a secret."""
MAX_TEXT = 500
"""The characters of a text that are recorded. The API accepts no longer names and descriptions."""

_INSERT = sa.insert(AuditEventRecord.metadata.tables[AuditEventRecord.__tablename__])


class Actor(NamedTuple):
    """Who makes the changes of the current task, and from where."""

    kind: ActorKind = ActorKind.USER
    id: str | None = None
    """The API key's id, `clerk` or the operator's name; None for the user whose account is changed."""
    address: str | None = None
    request_id: str | None = None


current_actor: ContextVar[Actor] = ContextVar("actor", default=Actor())  # noqa: B039
"""Set by the sign-in of the API and by the commands of operators. A program that overrides the sign-in need not."""


@contextmanager
def acting_as(actor: Actor) -> Iterator[None]:
    """Make the changes of this block those of another actor."""
    token = current_actor.set(actor)
    try:
        yield
    finally:
        current_actor.reset(token)


async def record(
    session: AsyncSession,
    action: AuditAction,
    user_id: UUID,
    resource: UUID | str,
    *,
    flow_id: UUID | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    hidden: Collection[str] = (),
) -> None:
    """Insert an event into the transaction of the change.

    `before` and `after` have the changed members by their names in the API, without secrets. The values of `hidden`
    members are not recorded.
    """
    actor = current_actor.get()
    values = {
        "user_id": user_id,
        "actor": actor.kind,
        "actor_id": str(user_id) if actor.id is None else actor.id,
        "action": action,
        "resource_id": str(resource),
        "flow_id": flow_id,
        "address": actor.address,
        "request_id": actor.request_id,
        "before": _recorded(before, hidden),
        "after": _recorded(after, hidden),
    }
    await session.execute(_INSERT, values)


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The members that differ, before and after."""
    changed = [name for name in after if before[name] != after[name]]
    return {name: before[name] for name in changed}, {name: after[name] for name in changed}


def _recorded(members: Mapping[str, Any] | None, hidden: Collection[str]) -> dict[str, Any] | None:
    if members is None:
        return None
    return {name: NOT_RECORDED if name in hidden else _cut(value) for name, value in members.items()}


def _cut(value: Any) -> Any:
    return value[:MAX_TEXT] if isinstance(value, str) else value
