"""Pages of an export, and which tables and columns it has."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.models.base import Base
from bloxserver.models.tables import ExecutionRecord
from bloxserver.queries.exports import EXECUTIONS, MAX_BYTES, MAX_ROWS, PARTS, Key, ranges_of, read_keys, read_rows
from tests.factories import create_flow, create_user

NOT_EXPORTED = {
    "billing_periods": "is what has been reported of the usage to Stripe",
    "deleted_users": "is about users without an account",
    "execution_series": "is computed from executions",
    "execution_totals": "is computed from executions",
    "idempotency_keys": "has hashes only, for 8 days",
    "llm_provider_leases": "belongs to no user",
    "llm_providers": "belongs to no user",
    "llm_reservations": "has the counts of calls, for minutes",
    "llm_windows": "has the counts of calls in a minute",
    "meter_reports": "is what has been reported of the usage to Stripe",
    "rate_counters": "has hashes only, for minutes",
    "storage_samples": "is what has been reported of the stored bytes to Stripe",
    "stored_bytes": "is computed from the other tables",
    "stripe_events": "belongs to no user",
    "workers": "belongs to no user",
}
NO_CREDENTIALS = {
    "account_emails.event_key",
    "api_keys.hint",
    "executions.parent_key",
    "key_values.key",
    "signing_secrets.hint",
    "steps.key",
    "steps.input_tokens",
    "steps.output_tokens",
    "executions.input_tokens",
    "executions.output_tokens",
    "provider_keys.key_hint",
    "triggers.previous_token_expires_at",
    "llm_calls.input_tokens",
    "llm_calls.output_tokens",
    "llm_calls.own_key",
    "llm_calls.first_token_ms",
    "usage.llm_tokens_in",
    "usage.llm_tokens_out",
}
"""Exported columns whose names could be those of credentials: names, counts, times and the last characters of keys."""


def test_every_table_is_exported_or_has_a_reason() -> None:
    exported = {part.table.name for part in PARTS}
    assert exported | NOT_EXPORTED.keys() == {*Base.metadata.tables}
    assert not exported & NOT_EXPORTED.keys()


def test_no_column_of_credentials_is_exported() -> None:
    found = set()
    for part in PARTS:
        for column in part.table.c:
            is_exported = any(column is used or column in used.base_columns for used in part.columns.values())
            suspicious = re.search("key|token|secret|hash|cipher|encrypted|hint|url|lease", column.name)
            if is_exported and (suspicious or isinstance(column.type, sa.LargeBinary)):
                found.add(f"{part.name}.{column.name}")
    assert found - {"profile.avatar_url", "provider_keys.key_hint"} == NO_CREDENTIALS - {"provider_keys.key_hint"}


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ([], []),
        ([1], [[0]]),
        ([1, 1, 1], [[0, 1, 2]]),
        ([MAX_BYTES], [[0]]),
        ([MAX_BYTES * 3], [[0]]),
        ([1, MAX_BYTES, 1], [[0], [1], [2]]),
        ([MAX_BYTES // 2] * 4, [[0, 1], [2, 3]]),
        ([0, MAX_BYTES * 3, 0, 0], [[0, 0], [1], [2, 3]]),
        ([0] * (MAX_ROWS + 1), [[0, MAX_ROWS - 1], [MAX_ROWS]]),
    ],
)
def test_rows_are_read_in_groups_of_limited_size(sizes: list[int], groups: list[list[int]]) -> None:
    keys = [Key((number,), size) for number, size in enumerate(sizes)]
    assert [(first.values[0], last.values[0]) for first, last in ranges_of(keys)] == [
        (group[0], group[-1]) for group in groups
    ]


async def test_pages_have_each_row_once(session: AsyncSession) -> None:
    """Many executions have the same time, and there are two modes."""
    user = await create_user(session)
    flow, other = await create_flow(session, user), await create_flow(session, user)
    moment = now()
    for number in range(23):
        values: dict[str, Any] = {"mode": "test" if number % 5 == 0 else "normal", "input_payload": "é" * number}
        values["started_at"] = moment + timedelta(microseconds=number // 7)
        session.add(ExecutionRecord(flow_id=flow.id, trigger_type="manual", **values))
    session.add(ExecutionRecord(flow_id=other.id, trigger_type="manual"))
    await session.commit()
    found: list[Any] = []
    after = None
    while keys := await read_keys(session, EXECUTIONS, [flow.id], after, 4):
        rows = await read_rows(session, EXECUTIONS, [flow.id], keys[0], keys[-1])
        assert [row.id for row in rows] == [key.values[-1] for key in keys]
        assert [len(row.inputPayload.encode()) for row in rows] == [key.size for key in keys]
        found += [row.id for row in rows]
        after = keys[-1]
    wanted = await session.scalars(sa.select(ExecutionRecord.id).where(ExecutionRecord.flow_id == flow.id))
    assert sorted(found) == sorted(wanted)


async def test_pages_of_executions_are_read_from_an_index(session: AsyncSession) -> None:
    flow = await create_flow(session, await create_user(session))
    statement = sa.select(*EXECUTIONS.key).where(EXECUTIONS.owner_column.in_([flow.id])).order_by(*EXECUTIONS.key)
    position = (flow.id, "normal", sa.literal(now(), EXECUTIONS.key[2].type), flow.id)
    after = sa.tuple_(*EXECUTIONS.key) > sa.tuple_(*position)
    bind = session.get_bind()
    text = str(statement.where(after).limit(9).compile(bind, compile_kwargs={"literal_binds": True}))
    if bind.dialect.name == "sqlite":
        plan = repr((await session.execute(sa.text(f"EXPLAIN QUERY PLAN {text}"))).all())
        assert "TEMP B-TREE" not in plan
    else:
        await session.execute(sa.text("SET LOCAL enable_seqscan = off"))
        plan = repr((await session.execute(sa.text(f"EXPLAIN {text}"))).all())
        assert "Sort" not in plan
    assert "ix_executions_flow_id_mode_started_at_id" in plan
