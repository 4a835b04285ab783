"""What a user's calls of language models have used, in groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.tables import FlowRecord, LlmCallRecord

NANO = 1_000_000_000
MAX_GROUPS = 1_000


class GroupBy(StrEnum):
    MODEL = "model"
    FLOW = "flow"
    DAY = "day"
    PROVIDER = "provider"


@dataclass(frozen=True)
class CallGroup:
    """The calls with one model, flow, day in UTC or provider. `cost_usd` is that of the calls whose price is known."""

    key: str | None
    name: str | None
    calls: int
    failed_calls: int
    cached_calls: int
    input_tokens: int
    output_tokens: int
    cost_usd: float


async def read_llm_usage(
    session: AsyncSession, user_id: UUID, group_by: GroupBy, begin: datetime, end: datetime
) -> Sequence[CallGroup]:
    """The groups of the calls from `begin` until before `end`, in one statement: days in order, others by cost."""
    call = LlmCallRecord
    keys: dict[GroupBy, sa.ColumnElement[Any]] = {
        GroupBy.MODEL: sa.type_coerce(call.model, sa.String()),
        GroupBy.FLOW: sa.type_coerce(call.flow_id, sa.Uuid()),
        GroupBy.PROVIDER: sa.type_coerce(call.provider, sa.String()),
        GroupBy.DAY: _day(session),
    }
    key = keys[group_by].label("key")
    cost = sa.func.coalesce(sa.func.sum(call.cost_nanousd), 0)
    groups = (
        sa.select(
            key,
            sa.func.count().label("calls"),
            sa.func.count(call.error_code).label("failed_calls"),
            sa.func.sum(sa.case((call.cached, 1), else_=0)).label("cached_calls"),
            sa.cast(sa.func.sum(call.input_tokens), sa.BigInteger).label("input_tokens"),
            sa.cast(sa.func.sum(call.output_tokens), sa.BigInteger).label("output_tokens"),
            sa.cast(cost, sa.BigInteger).label("cost"),
        )
        .where(call.user_id == user_id, call.created_at >= begin, call.created_at < end)
        .group_by(key)
        .order_by(*([key] if group_by is GroupBy.DAY else [cost.desc(), sa.func.count().desc(), key]))
        .limit(MAX_GROUPS)
    )
    if group_by is not GroupBy.FLOW:
        return [_group(row, None) for row in await session.execute(groups)]
    found = groups.subquery()
    named = sa.select(found, FlowRecord.name.label("flow_name")).outerjoin(
        FlowRecord,
        sa.and_(FlowRecord.id == found.c.key, FlowRecord.user_id == user_id, FlowRecord.deleted_at.is_(None)),
    )
    order = found.c.cost.desc(), found.c.calls.desc(), found.c.key
    return [_group(row, row.flow_name) for row in await session.execute(named.order_by(*order))]


def _day(session: AsyncSession) -> sa.ColumnElement[str]:
    moment = LlmCallRecord.created_at
    if session.get_bind().dialect.name == "sqlite":
        return sa.func.substr(sa.type_coerce(moment, sa.String()), 1, 10)
    return sa.func.to_char(sa.func.timezone("UTC", moment), "YYYY-MM-DD")


def _group(row: sa.Row[Any], name: str | None) -> CallGroup:
    return CallGroup(
        key=None if row.key is None else str(row.key),
        name=name,
        calls=row.calls,
        failed_calls=row.failed_calls,
        cached_calls=row.cached_calls,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        cost_usd=round(row.cost / NANO, 6),
    )
