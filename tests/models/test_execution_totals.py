"""Totals and series of executions equal what the rows say, however they are written and deleted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.ids import new_id
from bloxserver.models.database import Database
from bloxserver.models.execution_totals import BUCKETS, COUNTERS, count_anew, count_series, count_totals
from bloxserver.models.tables import (
    ExecutionRecord,
    ExecutionSeriesRecord,
    ExecutionTotalsRecord,
    FlowRecord,
    TriggerType,
    UserRecord,
)
from bloxserver.models.types import UtcDateTime
from bloxserver.models.upsert import insert_into
from tests.factories import create_execution, create_flow, create_user

Counts = dict[tuple[Any, ...], tuple[int, ...]]
START = datetime(2026, 3, 1, 12, 14, 59, 999_999, tzinfo=UTC)
TOTALS_KEY = (ExecutionTotalsRecord.flow_id, ExecutionTotalsRecord.mode)
SERIES = ExecutionSeriesRecord
SERIES_KEY = (SERIES.flow_id, SERIES.mode, SERIES.seconds, SERIES.start)
EXECUTIONS: Any = ExecutionRecord.__table__


async def maintained(session: AsyncSession) -> Counts:
    counts: Counts = {}
    for table, key in ((ExecutionTotalsRecord, TOTALS_KEY), (SERIES, SERIES_KEY)):
        sums = [sa.func.sum(getattr(table, name)) for name in COUNTERS]
        for row in await session.execute(sa.select(*key, *sums).group_by(*key)):
            values = tuple(int(value) for value in row[len(key) :])
            if any(values):
                counts[tuple(row[: len(key)])] = values
    empty = sa.and_(*(getattr(SERIES, name) == 0 for name in COUNTERS))
    assert await session.scalar(sa.select(sa.func.count()).where(empty).select_from(SERIES)) == 0
    return counts


async def counted(session: AsyncSession) -> Counts:
    dialect = session.get_bind().dialect.name
    key: dict[str, Any] = {"flow_id": sa.Uuid(), "mode": sa.String(), "seconds": sa.Integer(), "start": UtcDateTime()}
    queries = [(count_totals(), ["flow_id", "mode"]), *((count_series(width, dialect), list(key)) for width in BUCKETS)]
    counts: Counts = {}
    for query, names in queries:
        columns: list[Any] = [sa.column(name, key.get(name)) for name in (*names, "slot", *COUNTERS)]
        text = sa.text(query.replace("':", "'\\:"))  # no parameter
        for row in await session.execute(text.columns(*columns)):
            counts[tuple(row[: len(names)])] = tuple(int(value) for value in row[len(names) + 1 :])
    return counts


class Writer:
    """Makes the changes that an example consists of. `pick` selects one of the rows that exist."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session
        self.is_postgres = session.get_bind().dialect.name == "postgresql"

    async def pick(self, table: Any, number: int) -> Any:
        """The id of a row as an attribute, or None."""
        rows = (await self.session.execute(sa.select(table.id).order_by(table.id))).all()
        return rows[number % len(rows)] if rows else None

    async def execute(self, statement: Any) -> None:
        await self.session.execute(statement.execution_options(synchronize_session=False))

    async def rows(self, one: int, other: int, value: int) -> list[dict[str, Any]]:
        """Values of executions of two flows, with different modes, statuses and times."""
        flows = [await self.pick(FlowRecord, number) for number in (one, other)]
        statuses = ("running", "success", "error", "timeout", "cancelled", "unknown")
        return [
            {
                "id": new_id(),
                "flow_id": flow.id,
                "trigger_type": "manual",
                "mode": ("normal", "normal", "test")[(value + number) % 3],
                "status": statuses[(one + number) % len(statuses)],
                "started_at": START + timedelta(seconds=value * number * other),
                "duration_ms": value if number % 2 else None,
                "input_tokens": value,
                "output_tokens": one,
            }
            for number in range(other + 1)
            if (flow := flows[number % 2]) is not None
        ]

    async def insert_user(self, one: int, other: int, value: int) -> None:
        self.session.add(UserRecord(clerk_id=new_id().hex))

    async def insert_flow(self, one: int, other: int, value: int) -> None:
        if user := await self.pick(UserRecord, one):
            self.session.add(FlowRecord(user_id=user.id, name="F"))

    async def insert_execution(self, one: int, other: int, value: int) -> None:
        if flow := await self.pick(FlowRecord, one):
            moment = START + timedelta(minutes=value)
            self.session.add(ExecutionRecord(flow_id=flow.id, trigger_type=TriggerType.MANUAL, started_at=moment))

    async def insert_executions(self, one: int, other: int, value: int) -> None:
        if rows := await self.rows(one, other, value):
            await self.execute(sa.insert(EXECUTIONS).values(rows))

    async def copy_executions(self, one: int, other: int, value: int) -> None:
        """COPY on PostgreSQL, and a statement for each row on SQLite."""
        rows = await self.rows(one, other, value)
        if not rows:
            return
        if not self.is_postgres:
            await self.session.execute(sa.insert(EXECUTIONS), rows)
            return
        connection: Any = await (await self.session.connection()).get_raw_connection()
        records = [tuple(row.values()) for row in rows]
        await connection.driver_connection.copy_records_to_table("executions", records=records, columns=list(rows[0]))

    async def upsert_executions(self, one: int, other: int, value: int) -> None:
        """One statement inserts executions and updates one that exists."""
        rows = await self.rows(one, other, value)
        if rows and (execution := await self.pick(ExecutionRecord, other)):
            rows[0]["id"] = execution.id
            insert = insert_into(self.session, ExecutionRecord).values(rows)
            names = ("flow_id", "mode", "status", "started_at", "duration_ms")
            replaced = {name: insert.excluded[name] for name in names}
            await self.execute(insert.on_conflict_do_update(index_elements=["id"], set_=replaced))

    async def replace_execution(self, one: int, other: int, value: int) -> None:
        """REPLACE on SQLite, which deletes the row that it replaces; two statements on PostgreSQL."""
        rows = await self.rows(one, other, value)
        if rows and (execution := await self.pick(ExecutionRecord, other)):
            insert = sa.insert(EXECUTIONS)
            if self.is_postgres:
                await self.execute(sa.delete(ExecutionRecord).where(ExecutionRecord.id == execution.id))
            else:
                insert = insert.prefix_with("OR REPLACE")
            await self.execute(insert.values(rows[0] | {"id": execution.id}))

    async def update_execution(self, one: int, other: int, value: int) -> None:
        flow = await self.pick(FlowRecord, value)
        execution = await self.pick(ExecutionRecord, one)
        if execution is None or flow is None:
            return
        changes: Sequence[dict[str, Any]] = (
            {"status": "success", "duration_ms": value, "lease": None},
            {"status": "running", "duration_ms": None},
            {"status": "unknown"},
            {"duration_ms": value},
            {"input_tokens": value},
            {"output_tokens": value},
            {"started_at": START + timedelta(minutes=value)},
            {"mode": "test" if value % 2 else "normal"},
            {"flow_id": flow.id},
            {"id": new_id(), "output_tokens": value},
        )
        wanted = EXECUTIONS.c.id == execution.id
        await self.execute(sa.update(EXECUTIONS).where(wanted).values(**changes[other]))

    async def claim_executions(self, one: int, other: int, value: int) -> None:
        await self.execute(sa.update(EXECUTIONS).values(lease=new_id(), worker_id="w", output_payload="x" * value))

    async def end_executions(self, one: int, other: int, value: int) -> None:
        running = EXECUTIONS.c.status == "running"
        await self.execute(sa.update(EXECUTIONS).where(running).values(status="error", duration_ms=value))

    async def move_executions(self, one: int, other: int, value: int) -> None:
        """One statement moves executions of all flows to one."""
        if flow := await self.pick(FlowRecord, one):
            await self.execute(sa.update(EXECUTIONS).values(flow_id=flow.id, mode="normal"))

    async def move_flow(self, one: int, other: int, value: int) -> None:
        if (flow := await self.pick(FlowRecord, one)) and (user := await self.pick(UserRecord, other)):
            await self.execute(sa.update(FlowRecord).where(FlowRecord.id == flow.id).values(user_id=user.id))

    async def roll_back(self, one: int, other: int, value: int) -> None:
        async with self.session.begin_nested() as savepoint:
            await self.insert_executions(one, other, value)
            await self.end_executions(one, other, value)
            await savepoint.rollback()

    async def delete_row(self, one: int, other: int, value: int) -> None:
        """Deleting a parent deletes the executions by cascades."""
        table: Any = (UserRecord, FlowRecord, ExecutionRecord)[other % 3]
        if row := await self.pick(table, one):
            await self.execute(sa.delete(table).where(table.id == row.id))

    async def delete_several(self, one: int, other: int, value: int) -> None:
        table: Any = (FlowRecord, ExecutionRecord)[other % 2]
        chosen = [row.id for number in range(2) if (row := await self.pick(table, one + number))]
        await self.execute(sa.delete(table).where(table.id.in_(chosen)))

    async def truncate(self, one: int, other: int, value: int) -> None:
        table = ("executions", "flows", "users")[other % 3]
        await self.session.execute(sa.text(f"TRUNCATE {table} CASCADE" if self.is_postgres else f"DELETE FROM {table}"))  # noqa: S608


CHANGES = [name for name in vars(Writer) if not name.startswith("_") and name not in ("pick", "rows", "execute")]
GROWTH = ["insert_flow", "insert_executions", "copy_executions", "update_execution"]
change = st.tuples(
    st.one_of(st.sampled_from(GROWTH), st.sampled_from(CHANGES)),
    st.integers(0, 9),
    st.integers(0, 9),
    st.sampled_from([0, 1, 7, 100]),
)


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(changes=st.lists(change, min_size=12, max_size=30))
async def test_maintained_counts_equal_counted_rows_after_random_changes(
    live_database: Database, changes: list[tuple[str, int, int, int]]
) -> None:
    async with live_database.transaction() as session:
        await session.execute(sa.delete(UserRecord))
        writer = Writer(session)
        for setup in ("insert_user", "insert_flow", "insert_flow", "insert_executions"):
            await getattr(writer, setup)(0, 1, 1)
            await session.flush()
        for name, one, other, value in changes:
            await getattr(writer, name)(one, other, value)
            await session.flush()
            session.expunge_all()
            assert await maintained(session) == await counted(session), name


@pytest.mark.parametrize("seed", range(2))
async def test_counts_are_right_after_concurrent_writes_of_the_same_flows(
    live_database: Database, backend: str, seed: int
) -> None:
    """Transactions write rows of the flows in different orders, and some are rolled back."""
    if backend == "sqlite":
        pytest.skip("SQLite has one writer")
    async with live_database.sessions() as session:
        flows = [(await create_flow(session, await create_user(session))).id for _ in range(3)]

    async def write(number: int) -> None:
        choose = random.Random(f"{seed}-{number}")  # noqa: S311
        own: list[UUID] = []
        for _ in range(12):
            async with live_database.transaction() as session:
                for _ in range(choose.randint(1, 4)):
                    await write_rows(session, choose, own)
                if choose.random() < 0.2:
                    await session.rollback()

    async def write_rows(session: AsyncSession, choose: random.Random, own: list[UUID]) -> None:
        """Insert executions of several flows, or change or delete those of this task."""
        row = EXECUTIONS.c
        some = choose.sample(own, min(len(own), 3))
        if not some or choose.random() < 0.4:
            ids = [new_id() for _ in range(3)]
            moments = [START + timedelta(seconds=choose.choice((0, 30, 900))) for _ in ids]
            values = [
                {"id": id, "flow_id": choose.choice(flows), "trigger_type": "manual", "started_at": moment}
                for id, moment in zip(ids, moments, strict=True)
            ]
            await session.execute(sa.insert(EXECUTIONS).values(values))
            own += ids
        elif choose.random() < 0.6:
            changed = {"status": choose.choice(("success", "running")), "flow_id": choose.choice(flows)}
            await session.execute(sa.update(EXECUTIONS).where(row.id.in_(some)).values(changed))
        else:
            await session.execute(sa.delete(EXECUTIONS).where(row.id.in_(some)))

    async with asyncio.timeout(60):
        await asyncio.gather(*(write(number) for number in range(8)))
    async with live_database.sessions() as session:
        assert await counted(session), "some rows are left"
        assert await maintained(session) == await counted(session)


async def test_transactions_of_one_flow_do_not_wait_for_each_other(live_database: Database, backend: str) -> None:
    """In any order of flows: the transactions would deadlock if they waited."""
    if backend == "sqlite":
        pytest.skip("SQLite has one writer")
    async with live_database.sessions() as session:
        flows = [await create_flow(session, await create_user(session)) for _ in range(2)]
    for _ in range(2):  # first without rows to add to, then with rows
        async with AsyncExitStack() as stack:
            sessions = [await stack.enter_async_context(live_database.transaction()) for _ in range(4)]
            for session in sessions:
                await session.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
            for offset in range(2):
                for number, session in enumerate(sessions):
                    flow = flows[(number + offset) % 2]
                    session.add(ExecutionRecord(flow_id=flow.id, trigger_type=TriggerType.MANUAL))
                    await session.flush()
    async with live_database.sessions() as session:
        assert await maintained(session) == await counted(session)
        slots = await session.scalar(sa.select(sa.func.count()).select_from(ExecutionTotalsRecord))
        assert slots == 8, "the second round uses the rows of the first"


async def test_an_execution_ends_while_a_transaction_that_locked_its_flow_waits_for_it(
    live_database: Database, backend: str
) -> None:
    """A check of a foreign key from the totals to the flow would be a deadlock here."""
    if backend == "sqlite":
        pytest.skip("SQLite has one writer")
    async with live_database.sessions() as session:
        flow = await create_flow(session, await create_user(session))
        execution = await create_execution(session, flow)

    async def delete_flow() -> None:
        async with live_database.transaction() as session:
            await session.execute(sa.select(FlowRecord.id).with_for_update())
            flow_is_locked.set()
            await session.execute(sa.delete(ExecutionRecord))
            await session.execute(sa.delete(FlowRecord))

    flow_is_locked = asyncio.Event()
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(live_database.transaction())
        # It holds the only slot, so that the next transaction creates one.
        await other.execute(sa.select(ExecutionTotalsRecord.slot).with_for_update())
        session = await stack.enter_async_context(live_database.transaction())
        await session.execute(sa.select(ExecutionRecord.id).where(ExecutionRecord.id == execution.id).with_for_update())
        deleting = asyncio.create_task(delete_flow())
        await flow_is_locked.wait()
        await session.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
        await session.execute(sa.update(ExecutionRecord).values(status="success", duration_ms=1))
    await deleting
    async with live_database.sessions() as session:
        for table in (ExecutionTotalsRecord, ExecutionSeriesRecord):
            assert await session.scalar(sa.select(sa.func.count()).select_from(table)) == 0


async def test_counts_without_foreign_keys(session: AsyncSession, backend: str) -> None:
    """Another program may use SQLite without foreign keys, so that a flow is deleted before its executions."""
    flow = await create_flow(session, await create_user(session))
    await create_execution(session, flow)
    if backend == "sqlite":
        await session.execute(sa.text("PRAGMA foreign_keys = off"))
    await session.execute(sa.delete(FlowRecord).where(FlowRecord.id == flow.id))
    assert await maintained(session) == {}
    await session.execute(sa.delete(ExecutionRecord))
    assert await maintained(session) == {} == await counted(session)


@pytest.mark.parametrize("table", ["executions", "flows", "users"])
async def test_executions_of_truncated_tables_do_not_count(session: AsyncSession, backend: str, table: str) -> None:
    if backend == "sqlite":
        pytest.skip("SQLite has no TRUNCATE")
    await create_execution(session, await create_flow(session, await create_user(session)))
    assert await maintained(session) == await counted(session) != {}
    await session.execute(sa.text(f"TRUNCATE {table} CASCADE"))
    assert await maintained(session) == {}
    await session.rollback()


async def test_counting_anew_gives_what_triggers_maintain(session: AsyncSession, backend: str) -> None:
    user = await create_user(session)
    for number in range(3):
        flow = await create_flow(session, user)
        for minute in range(20):
            moment = START + timedelta(minutes=minute * number)
            await create_execution(session, flow, started_at=moment, status="success", duration_ms=minute)
    before = await maintained(session)
    for table in (ExecutionTotalsRecord, ExecutionSeriesRecord):
        await session.execute(sa.delete(table))
    dialect = session.get_bind().dialect.name
    for statement in count_anew(dialect):
        await (await session.connection()).exec_driver_sql(statement)
    assert await maintained(session) == before == await counted(session)
