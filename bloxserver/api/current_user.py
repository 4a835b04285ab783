"""The signed-in user of a request."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import sqlalchemy as sa
from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.attributes import set_committed_value

from bloxserver.errors import Forbidden, Unauthorized
from bloxserver.models.enums import Scope
from bloxserver.models.tables import Tier, UserRecord
from bloxserver.plans import Plan, get_plan
from bloxserver.queries.api_keys import KeyAccess
from bloxserver.queries.usage import Period, period_at
from bloxserver.services.rate_limits import Admission
from bloxserver.services.users import AccountDeleted, user_of_claims

NO_FLOW = UUID(int=0)
"""No flow has this id."""
MAX_KNOWN_IDS = 10_000
INVALID_KEY = "The API key is unknown, revoked or expired"

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
OpenSession = Callable[[], AbstractAsyncContextManager[AsyncSession]]
"""Opens the session in which a user is read or created."""

_known_ids: dict[str, UUID] = {}
"""Ids of users by the subjects of their tokens. Each use is confirmed by the database."""


@dataclass(frozen=True)
class CurrentUser:
    """The user who sends the request. The record may be detached or have no row: only loaded attributes are read."""

    user: UserRecord
    clerk_payload: dict[str, Any]
    api_key: KeyAccess | None = None
    """What the request's API key gives access to; None without one."""

    def _loaded(self, name: str) -> Any:
        return vars(self.user).get(name)

    @property
    def id(self) -> UUID:
        user_id: UUID = self._loaded("id")
        return user_id

    @property
    def clerk_id(self) -> str:
        return self._loaded("clerk_id") or ""

    @property
    def email(self) -> str:
        return self._loaded("email") or ""

    @property
    def name(self) -> str | None:
        name: str | None = self._loaded("name")
        return name

    @property
    def avatar_url(self) -> str | None:
        url: str | None = self._loaded("avatar_url")
        return url

    @property
    def tier(self) -> str:
        return str(self._loaded("tier") or Tier.FREE.value)

    @property
    def plan(self) -> Plan:
        """The limits of the tier, with those that an operator set for this user."""
        return get_plan(self.tier, self._loaded("limits"), self._loaded("billing_status"))

    @property
    def billing_status(self) -> str:
        return str(self._loaded("billing_status") or "active")

    @property
    def trial_ends_at(self) -> datetime | None:
        at: datetime | None = self._loaded("trial_ends_at")
        return at

    @property
    def current_period_end(self) -> datetime | None:
        at: datetime | None = self._loaded("current_period_end")
        return at

    @property
    def created_at(self) -> datetime | None:
        at: datetime | None = self._loaded("created_at")
        return at

    @property
    def flow_ids(self) -> Collection[UUID] | None:
        """The flows to which the request is restricted by its API key; None if it is not."""
        return None if self.api_key is None else self.api_key.flow_ids

    def visible_flows(self, wanted: Collection[UUID]) -> tuple[UUID, ...]:
        """The flows to which a list is restricted: those that are wanted, if any, and that the request may read."""
        if self.flow_ids is None:
            return tuple(sorted({*wanted}))
        visible = {*self.flow_ids} & {*wanted} if wanted else {*self.flow_ids}
        return tuple(sorted(visible or {NO_FLOW}))

    def has_scope(self, scope: Scope) -> bool:
        """Whether the request may do what `scope` names. Only API keys are limited to scopes."""
        return self.api_key is None or scope in self.api_key.scopes

    def period_at(self, moment: datetime) -> Period:
        """The billing period that contains `moment`."""
        return period_at(moment, self._loaded("current_period_start"), self.current_period_end)

    def confirm(self, row: sa.Row[Any]) -> bool:
        """See `queries.requesters.Requester`. This user was read before, or by an override of the sign-in."""
        return True

    async def read(self) -> None:
        """Does nothing: the user was read before."""


class UnreadUser(CurrentUser):
    """A user of whom only the id and the claims are known: the statement of the route reads the rest.

    Until `confirm` returns, nothing but `id` may be used.
    """

    def __init__(
        self,
        user_id: UUID,
        claims: dict[str, Any],
        access: KeyAccess | None,
        admission: Admission,
        open_session: OpenSession,
    ) -> None:
        super().__init__(UserRecord(id=user_id, clerk_id=claims["sub"]), claims, access)
        vars(self).update(_admission=admission, _open_session=open_session)

    def confirm(self, row: sa.Row[Any]) -> bool:
        if row.requester_clerk_id != self.clerk_id:  # deleted, or of another database
            return False
        refuse_blocked(row.requester_disabled_at, row.requester_deleted_at)
        set_committed_value(self.user, "tier", row.requester_tier)
        set_committed_value(self.user, "limits", row.requester_limits)
        self._count()
        return True

    async def read(self) -> None:
        open_session: OpenSession = vars(self)["_open_session"]
        async with open_session() as session:
            vars(self).update(user=await read_user(session, self.clerk_payload, self.api_key))
        self._count()

    def _count(self) -> None:
        admission: Admission = vars(self)["_admission"]
        count_request(self, admission)


def refuse_blocked(disabled_at: datetime | None, deleted_at: datetime | None) -> None:
    """Raise `AccountDeleted` if the user was deleted, and `Forbidden` if an operator has disabled the user."""
    if deleted_at is not None:
        raise AccountDeleted
    if disabled_at is not None:
        raise Forbidden("user_disabled", "The operator has disabled this account")


def count_request(user: CurrentUser, admission: Admission) -> None:
    """Count the request of a user who was read. Raises `RateLimited`."""
    if user.api_key is not None:
        admission.count("api_key", str(user.api_key.id), user.plan.key_requests_per_minute)
    admission.count("user", user.clerk_id, user.plan.requests_per_minute)


def reads_requester(endpoint: Endpoint) -> Endpoint:
    """Mark the endpoint of a route whose first statement is executed by `read_for`, so that no other reads the user."""
    endpoint.reads_requester = True  # type: ignore[attr-defined]
    return endpoint


def find_unread_user(
    request: Request,
    claims: dict[str, Any],
    access: KeyAccess | None,
    admission: Admission,
    open_session: OpenSession,
) -> UnreadUser | None:
    """The user of a verified token or key, if the route reads them; None if they are to be read now."""
    if not getattr(request.scope.get("endpoint"), "reads_requester", False):
        return None
    user_id = _known_ids.get(claims["sub"]) if access is None else access.user_id
    return None if user_id is None else UnreadUser(user_id, claims, access, admission, open_session)


async def read_user(session: AsyncSession, claims: dict[str, Any], access: KeyAccess | None = None) -> UserRecord:
    """The user of a verified token or key. The first token creates the user.

    Raises `Unauthorized` if the user was deleted, and `Forbidden` if the user is disabled.
    """
    if access is not None:
        owner = await session.get(UserRecord, access.user_id, populate_existing=True)
        if owner is None:
            raise Unauthorized("invalid_api_key", INVALID_KEY)
        refuse_blocked(owner.disabled_at, owner.deleted_at)
        return owner
    user = await user_of_claims(session, claims)
    refuse_blocked(user.disabled_at, user.deleted_at)
    if len(_known_ids) >= MAX_KNOWN_IDS:
        del _known_ids[next(iter(_known_ids))]
    _known_ids[claims["sub"]] = user.id
    return user
