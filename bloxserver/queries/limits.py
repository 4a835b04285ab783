"""Which users of the installation are at a limit of their plan, or near it: for `bloxserver status`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import expression

from bloxserver.models.tables import (
    ApiKeyRecord,
    FlowRecord,
    SecretRecord,
    StoredBytesRecord,
    TriggerRecord,
    UsageRecord,
    UserRecord,
)
from bloxserver.plans import MAX_LIMIT, PLANS, Plan

NEAR = 0.8
"""The share of a limit from which a user is near it."""
MAX_USERS = 10
"""Users that are listed for each limit, those with the largest share first."""


class UserAtLimit(NamedTuple):
    clerk_id: str
    tier: str
    used: int
    limit: int


class LimitState(NamedTuple):
    """A limit, named like the attribute of `Plan`, and the users who are at it or near it."""

    name: str
    at: int
    """The number of users who use all of it, or more."""
    near: int
    """The number of other users who use at least `NEAR` of it."""
    users: Sequence[UserAtLimit]


async def read_limits(session: AsyncSession, moment: datetime) -> list[LimitState]:
    """The state of each limit that is counted in the database. Reads the whole of the counted tables."""
    return [await _read_limit(session, name, used) for name, used in _uses(moment).items()]


async def _read_limit(session: AsyncSession, name: str, used: sa.Subquery) -> LimitState:
    tier = sa.cast(UserRecord.tier, sa.String)
    limit = _limit(name, tier)
    share = sa.case((limit > 0, sa.cast(used.c.used, sa.Float) / limit), else_=sa.literal(1.0))
    is_near = sa.and_(limit.is_not(None), used.c.used > 0, used.c.used >= NEAR * limit)
    counts = sa.func.count().filter(used.c.used >= limit).over(), sa.func.count().over()
    users = (
        sa.select(UserRecord.clerk_id, tier.label("tier"), used.c.used, limit.label("limit"), *counts)
        .join(used, used.c.user_id == UserRecord.id)
        .where(is_near)
        .order_by(share.desc(), used.c.used.desc(), UserRecord.clerk_id)
        .limit(MAX_USERS)
    )
    rows = (await session.execute(users)).all()
    number_at, number = (rows[0][4], rows[0][5]) if rows else (0, 0)
    listed = [UserAtLimit(row.clerk_id, row.tier or "free", int(row.used), int(row.limit)) for row in rows]
    return LimitState(name, number_at, number - number_at, listed)


def _limit(name: str, tier: sa.ColumnElement[str]) -> sa.ColumnElement[float]:
    """A user's limit; null if unlimited. Like `plans.get_plan`, it ignores unusable overrides."""
    by_tier = sa.case(
        *((tier == known, sa.cast(getattr(plan, name), sa.Float)) for known, plan in PLANS.items()),
        else_=sa.cast(getattr(PLANS["free"], name), sa.Float),
    )
    kind, number = limit_kind(UserRecord.limits, name), limit_number(UserRecord.limits, name)
    cases: list[Any] = [(number.is_not(None), number)]
    if "None" in str(next(field for field in fields(Plan) if field.name == name).type):
        cases.append((kind == "null", sa.null()))
    return sa.case(*cases, else_=by_tier)


def _uses(moment: datetime) -> dict[str, sa.Subquery]:
    """For each limit, what each user has of it, with the columns `user_id` and `used`."""
    count = sa.func.count().label("used")
    exists = FlowRecord.deleted_at.is_(None)
    triggers = (
        sa.select(FlowRecord.user_id, count)
        .select_from(TriggerRecord)
        .join(FlowRecord, FlowRecord.id == TriggerRecord.flow_id)
        .where(exists, TriggerRecord.deleted_at.is_(None))
        .group_by(FlowRecord.user_id, FlowRecord.id)
        .subquery()
    )
    in_period = UsageRecord.period_start <= moment, UsageRecord.period_end > moment
    uses = {
        "runs": sa.select(UsageRecord.user_id, sa.func.sum(UsageRecord.workflow_runs).label("used"))
        .where(*in_period)
        .group_by(UsageRecord.user_id),
        "flows": sa.select(FlowRecord.user_id, count).where(exists).group_by(FlowRecord.user_id),
        "triggers_per_flow": sa.select(triggers.c.user_id, sa.func.max(triggers.c.used).label("used")).group_by(
            triggers.c.user_id
        ),
        "secrets": sa.select(SecretRecord.user_id, count).group_by(SecretRecord.user_id),
        "api_keys": sa.select(ApiKeyRecord.user_id, count).group_by(ApiKeyRecord.user_id),
        "stored_bytes": sa.select(
            StoredBytesRecord.user_id, sa.func.sum(StoredBytesRecord.bytes).label("used")
        ).group_by(StoredBytesRecord.user_id),
    }
    return {name: use.subquery() for name, use in uses.items()}


class limit_kind(expression.FunctionElement[str]):  # noqa: N801
    """The type of a member of a JSON column, in the terms of the database; null if there is no such member."""

    type = sa.String()
    inherit_cache = True

    def __init__(self, column: Any, name: str) -> None:
        super().__init__(column, sa.literal(name))


class limit_number(limit_kind):  # noqa: N801
    """The number that is the value of a member of a JSON column, rounded down; null if a plan cannot have it."""

    type = sa.Float()  # type: ignore[assignment]
    inherit_cache = True


@compiles(limit_kind, "postgresql")
def _(element: Any, compiler: Any, **options: Any) -> str:
    column, name = (compiler.process(clause, **options) for clause in element.clauses)
    return f"json_typeof({column} -> {name})"


@compiles(limit_kind, "sqlite")
def _(element: Any, compiler: Any, **options: Any) -> str:
    column, name = (compiler.process(clause, **options) for clause in element.clauses)
    kind = f"json_type({column}, '$.' || {name})"
    return f"CASE WHEN json_valid({column}) THEN {kind} END"  # the column may hold any text


@compiles(limit_number, "postgresql")
def _(element: Any, compiler: Any, **options: Any) -> str:
    column, name = (compiler.process(clause, **options) for clause in element.clauses)
    kind, text = f"json_typeof({column} -> {name})", f"({column} ->> {name})"
    # A cast of a number that the type cannot hold fails. `numeric` holds all numbers of this length and exponent.
    is_numeric = f"length({text}) < 10000 AND {text} !~ '[eE][-+]?0*[1-9][0-9]{{3}}'"
    is_usable = f"CAST({text} AS numeric) BETWEEN 0 AND {MAX_LIMIT}"
    number = f"CAST(floor(CAST({text} AS numeric)) AS double precision)"
    return f"CASE WHEN {kind} = 'number' AND {is_numeric} THEN CASE WHEN {is_usable} THEN {number} END END"


@compiles(limit_number, "sqlite")
def _(element: Any, compiler: Any, **options: Any) -> str:
    column, name = (compiler.process(clause, **options) for clause in element.clauses)
    kind, number = f"json_type({column}, '$.' || {name})", f"json_extract({column}, '$.' || {name})"
    is_usable = f"{kind} IN ('integer', 'real') AND {number} BETWEEN 0 AND {MAX_LIMIT}"
    return f"CASE WHEN json_valid({column}) THEN CASE WHEN {is_usable} THEN CAST({number} AS INTEGER) END END"
