"""Reading events of the audit log. The rest is tested through the API."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bloxserver.clock import now
from bloxserver.ids import new_id
from bloxserver.models.enums import ActorKind, AuditAction
from bloxserver.models.tables import AuditEventRecord
from bloxserver.queries.audit import SEARCHED, AuditFilter, position_of, read_all_events, read_events


def event(**values: Any) -> dict[str, Any]:
    defaults = {"actor": ActorKind.USER, "actor_id": "a", "action": "flow.updated", "resource_id": "r"}
    return {"id": new_id(), "user_id": new_id(), "created_at": now(), **defaults, **values}


async def test_all_events_are_read_in_pages_oldest_first(session: AsyncSession) -> None:
    moment = now()
    # Their ids are in the opposite order of their times, apart from those with the same time.
    events = [event(created_at=moment - timedelta(seconds=number // 3)) for number in range(10)]
    await session.execute(sa.insert(AuditEventRecord), events)
    seen: list[Any] = []
    while page := await read_all_events(session, AuditFilter(), None, position_of(seen[-1]) if seen else None, 3):
        seen += page
    expected = sorted(events, key=lambda each: (each["created_at"], each["id"]))
    assert [each.id for each in seen] == [each["id"] for each in expected]


async def test_events_of_one_account_and_of_some_actions(session: AsyncSession) -> None:
    mine, theirs = event(), event()
    started = event(user_id=mine["user_id"], action="flow.started")
    await session.execute(sa.insert(AuditEventRecord), [mine, theirs, started])
    wanted = AuditFilter()
    assert [each.id for each in await read_all_events(session, wanted, mine["user_id"], None, 9)] == [
        mine["id"],
        started["id"],
    ]
    only = AuditFilter(actions=(AuditAction.FLOW_STARTED,))
    assert [each.id for each in await read_all_events(session, only, None, None, 9)] == [started["id"]]


async def test_page_with_filters_continues_the_search_of_the_page_before(session: AsyncSession) -> None:
    """Of two pages' worth of events, only the oldest ones match."""
    user_id, moment = new_id(), now()
    events = [
        event(user_id=user_id, created_at=moment - timedelta(seconds=age // 3)) for age in range(2 * SEARCHED + 1)
    ]
    for matching in events[-3:]:
        matching["action"] = "flow.started"
    await session.execute(sa.insert(AuditEventRecord), events)
    wanted, cursor = AuditFilter(actions=(AuditAction.FLOW_STARTED,)), None
    pages: list[list[UUID]] = []
    while not pages or cursor is not None:
        page = await read_events(session, user_id, wanted, 2, cursor)
        pages.append([item["id"] for item in page.items])
        cursor = page.next_cursor
    expected = sorted(events[-3:], key=lambda each: (each["created_at"], each["id"]), reverse=True)
    assert pages[0] == []
    assert [found for page in pages for found in page] == [each["id"] for each in expected]
    assert len(pages) == 3


async def test_page_of_a_user_is_read_by_its_index_without_sorting(
    session: AsyncSession, database_engine: AsyncEngine
) -> None:
    user_id = new_id()
    events = [event(user_id=new_id() if number % 10 else user_id) for number in range(2_000)]
    await session.execute(sa.insert(AuditEventRecord), events)
    await session.execute(sa.text("ANALYZE"))
    await session.commit()
    page = await read_events(session, user_id, AuditFilter(), 10)
    assert page.next_cursor is not None
    verb = "EXPLAIN" if database_engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
    for cursor in (None, page.next_cursor):
        with recorded(database_engine) as statements:
            await read_events(session, user_id, AuditFilter(), 10, cursor)
        [(statement, parameters)] = statements
        connection = await session.connection()
        plan = "\n".join(map(str, await connection.exec_driver_sql(f"{verb} {statement}", parameters)))
        assert "ix_audit_events_user_id_created_at_id" in plan
        assert not re.search("Sort|TEMP B-TREE", plan)


@contextmanager
def recorded(engine: AsyncEngine) -> Iterator[list[tuple[str, Any]]]:
    """The statements of the block with their parameters."""
    statements: list[tuple[str, Any]] = []

    def record(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        statements.append((statement, parameters))

    sa.event.listen(engine.sync_engine, "before_cursor_execute", record)
    yield statements
    sa.event.remove(engine.sync_engine, "before_cursor_execute", record)
