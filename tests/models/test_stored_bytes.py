"""`stored_bytes` equals the bytes of the rows, however they are written and deleted."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any, TypeVar
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.ids import new_id
from bloxserver.models.database import Database
from bloxserver.models.stored_bytes import ROW_BYTES, SOURCES, count_queries
from bloxserver.models.tables import (
    ExecutionRecord,
    ExecutionStepRecord,
    FlowRecord,
    FlowVersionRecord,
    KeyValueRecord,
    StoredBytesRecord,
    TriggerType,
    UserRecord,
)
from bloxserver.models.upsert import insert_into
from tests.factories import create_execution, create_flow, create_user
from tests.lock_waits import wait_for_lock_wait

Totals = dict[tuple[UUID, str], int]
Row = TypeVar("Row")
COUNTED = [source.table for source in SOURCES]


async def maintained(session: AsyncSession) -> Totals:
    rows = await session.execute(
        sa.select(StoredBytesRecord.user_id, StoredBytesRecord.source, sa.func.sum(StoredBytesRecord.bytes)).group_by(
            StoredBytesRecord.user_id, StoredBytesRecord.source
        )
    )
    return {(user_id, source): int(size) for user_id, source, size in rows if size}


async def counted(session: AsyncSession) -> Totals:
    columns = [sa.column("user_id", sa.Uuid()), sa.column("source"), sa.column("slot"), sa.column("bytes")]
    totals: Totals = {}
    for query in count_queries(session.get_bind().dialect.name):
        for user_id, source, _, size in await session.execute(sa.text(query).columns(*columns)):
            totals[user_id, source] = int(size)
    return totals


class Writer:
    """Makes the changes that an example consists of. `pick` selects one of the rows that exist."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def pick(self, table: type[Row], number: int) -> Row | None:
        key = sa.inspect(table).primary_key
        rows = (await self.session.scalars(sa.select(table).order_by(*key))).all()
        return rows[number % len(rows)] if rows else None

    async def insert_user(self, one: int, other: int, text: str) -> None:
        self.session.add(UserRecord(clerk_id=new_id().hex))

    async def insert_flow(self, one: int, other: int, text: str) -> None:
        if user := await self.pick(UserRecord, one):
            self.session.add(FlowRecord(user_id=user.id, name="F", organism_yaml=text))

    async def insert_versions(self, one: int, other: int, text: str) -> None:
        if flow := await self.pick(FlowRecord, one):
            number = await self.session.scalar(sa.select(sa.func.max(FlowVersionRecord.number))) or 0
            canvas = {"name": text} if other % 2 else None
            values = {"flow_id": flow.id, "organism_yaml": text, "canvas_state": canvas}
            await self.session.execute(
                sa.insert(FlowVersionRecord).values([values | {"number": number + 1}, values | {"number": number + 2}])
            )

    async def insert_executions(self, one: int, other: int, text: str) -> None:
        """One statement inserts rows of two owners."""
        if (flow := await self.pick(FlowRecord, one)) and (second := await self.pick(FlowRecord, other)):
            rows = [
                {"flow_id": id, "trigger_type": TriggerType.MANUAL, "input_payload": text}
                for id in (flow.id, second.id)
            ]
            await self.session.execute(sa.insert(ExecutionRecord).values(rows))

    async def upsert_steps(self, one: int, other: int, text: str) -> None:
        """One statement inserts steps and updates those that exist."""
        if (execution := await self.pick(ExecutionRecord, one)) and (second := await self.pick(ExecutionRecord, other)):
            rows = [
                {"id": new_id(), "execution_id": id, "key": key, "listener": "a", "state": text, "input_payload": key}
                for id in {execution.id, second.id}
                for key in ("1", "2")
            ]
            insert = insert_into(self.session, ExecutionStepRecord).values(rows)
            await self.session.execute(
                insert.on_conflict_do_update(
                    index_elements=["execution_id", "key"],
                    set_={"state": insert.excluded.state, "output_payload": text},
                )
            )

    async def upsert_key_value(self, one: int, other: int, text: str) -> None:
        if flow := await self.pick(FlowRecord, one):
            insert = insert_into(self.session, KeyValueRecord).values(flow_id=flow.id, key=f"k{other}", value=text)
            await self.session.execute(
                insert.on_conflict_do_update(index_elements=["flow_id", "key"], set_={"value": insert.excluded.value})
            )

    async def update_executions(self, one: int, other: int, text: str) -> None:
        values = {"output_payload": text, "error_message": text if other % 2 else None}
        await self.session.execute(
            sa.update(ExecutionRecord).values(values).execution_options(synchronize_session=False)
        )

    async def update_version(self, one: int, other: int, text: str) -> None:
        if version := await self.pick(FlowVersionRecord, one):
            version.organism_yaml, version.canvas_state = text, None

    async def move_flow(self, one: int, other: int, text: str) -> None:
        if (flow := await self.pick(FlowRecord, one)) and (user := await self.pick(UserRecord, other)):
            flow.user_id = user.id

    async def move_execution(self, one: int, other: int, text: str) -> None:
        if (execution := await self.pick(ExecutionRecord, one)) and (flow := await self.pick(FlowRecord, other)):
            execution.flow_id = flow.id
            execution.input_payload = text

    async def move_step(self, one: int, other: int, text: str) -> None:
        if (step := await self.pick(ExecutionStepRecord, one)) and (to := await self.pick(ExecutionRecord, other)):
            step.execution_id, step.key, step.state = to.id, new_id().hex, text

    async def replace_step(self, one: int, other: int, text: str) -> None:
        """REPLACE on SQLite, which deletes the row that it replaces; two statements on PostgreSQL."""
        if step := await self.pick(ExecutionStepRecord, one):
            insert = sa.insert(ExecutionStepRecord)
            if self.session.get_bind().dialect.name == "sqlite":
                insert = insert.prefix_with("OR REPLACE")
            else:
                await self.session.execute(sa.delete(ExecutionStepRecord).where(ExecutionStepRecord.id == step.id))
            await self.session.execute(
                insert.values(execution_id=step.execution_id, key=step.key, listener="b", output_payload=text)
            )

    async def roll_back(self, one: int, other: int, text: str) -> None:
        async with self.session.begin_nested() as savepoint:
            await self.upsert_steps(one, other, text * 2)
            await savepoint.rollback()

    async def delete_row(self, one: int, other: int, text: str) -> None:
        """Deleting a parent deletes the rows below by cascades."""
        tables = (UserRecord, FlowRecord, ExecutionRecord, ExecutionStepRecord, FlowVersionRecord, KeyValueRecord)
        table: Any = tables[other % len(tables)]
        if row := await self.pick(table, one):
            key = sa.inspect(table).primary_key
            wanted = [column == getattr(row, column.key) for column in key]
            await self.session.execute(sa.delete(table).where(*wanted).execution_options(synchronize_session=False))

    async def delete_several(self, one: int, other: int, text: str) -> None:
        table: Any = (FlowRecord, ExecutionRecord)[other % 2]
        chosen = [row.id for number in range(2) if (row := await self.pick(table, one + number))]
        await self.session.execute(
            sa.delete(table).where(table.id.in_(chosen)).execution_options(synchronize_session=False)
        )

    async def truncate(self, one: int, other: int, text: str) -> None:
        table = ("flows", *COUNTED)[one % 5]
        is_postgres = self.session.get_bind().dialect.name == "postgresql"
        await self.session.execute(sa.text(f"TRUNCATE {table} CASCADE" if is_postgres else f"DELETE FROM {table}"))  # noqa: S608


CHANGES = [name for name in vars(Writer) if not name.startswith("_") and name != "pick"]
GROWTH = ["insert_user", "insert_flow", "insert_executions", "upsert_steps", "insert_versions", "upsert_key_value"]
change = st.tuples(
    st.one_of(st.sampled_from(GROWTH), st.sampled_from(CHANGES)),
    st.integers(0, 9),
    st.integers(0, 9),
    st.sampled_from(["", "x", "\u00e4\u20ac\U0001f600", "long " * 3000]),
)


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(changes=st.lists(change, min_size=5, max_size=30))
async def test_maintained_bytes_equal_counted_bytes_after_random_changes(
    live_database: Database, changes: list[tuple[str, int, int, str]]
) -> None:
    async with live_database.transaction() as session:
        await session.execute(sa.delete(UserRecord))
        writer = Writer(session)
        for setup in GROWTH[:4]:
            await getattr(writer, setup)(0, 0, "start")
            await session.flush()
        for name, one, other, text in changes:
            await getattr(writer, name)(one, other, text)
            await session.flush()
            session.expunge_all()
            assert await maintained(session) == await counted(session), name


async def test_bytes_of_each_kind_of_row(session: AsyncSession) -> None:
    """Text counts in UTF-8. Null counts nothing, apart from the row itself."""
    user = await create_user(session)
    flow = await create_flow(session, user)
    execution = await create_execution(session, flow, input_payload="\u00e4", output_payload="12", error_message="345")
    session.add(ExecutionStepRecord(execution_id=execution.id, key="1", listener="a", state="\u20ac"))
    session.add(FlowVersionRecord(flow_id=flow.id, number=1, organism_yaml="abc", canvas_state={}))
    session.add(KeyValueRecord(flow_id=flow.id, key="key", value="[1]"))
    await session.commit()
    sizes = {"executions": 7, "execution_steps": 3, "flow_versions": 5, "key_values": 6}
    assert await maintained(session) == {(user.id, source): ROW_BYTES + size for source, size in sizes.items()}


async def test_transactions_of_one_user_do_not_wait_for_each_other(live_database: Database, backend: str) -> None:
    """In any order of users: the transactions would deadlock if they waited."""
    if backend == "sqlite":
        pytest.skip("SQLite has one writer")
    async with live_database.sessions() as session:
        flows = [await create_flow(session, await create_user(session)) for _ in range(2)]

    async def write(session: AsyncSession, flow: FlowRecord) -> None:
        session.add(ExecutionRecord(flow_id=flow.id, trigger_type=TriggerType.MANUAL, input_payload="x" * 100))
        await session.flush()

    for _ in range(2):  # first without rows to add to, then with rows
        async with AsyncExitStack() as stack:
            sessions = [await stack.enter_async_context(live_database.transaction()) for _ in range(4)]
            for session in sessions:
                await session.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
            for offset in range(2):
                for number, session in enumerate(sessions):
                    await write(session, flows[(number + offset) % 2])
    async with live_database.sessions() as session:
        assert sum((await maintained(session)).values()) == 16 * (ROW_BYTES + 100)
        assert await maintained(session) == await counted(session)
        slots = await session.scalar(sa.select(sa.func.count()).select_from(StoredBytesRecord))
        assert slots == 8, "the second round uses the rows of the first"


async def test_a_new_slot_is_never_one_that_another_transaction_has_locked(
    live_database: Database, backend: str
) -> None:
    """Slots once had the numbers of the connections that created them, which other transactions may have locked."""
    if backend == "sqlite":
        pytest.skip("SQLite has one writer")
    async with AsyncExitStack() as stack:
        setup = await stack.enter_async_context(live_database.sessions())
        flows = [await create_flow(setup, await create_user(setup)) for _ in range(2)]
        sessions = [await stack.enter_async_context(live_database.transaction()) for _ in range(2)]
        for session, flow in zip(sessions, flows, strict=True):
            await session.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
            connection_id = await session.scalar(sa.select(sa.func.pg_backend_pid()))
            await create_execution(setup, flow)
            slot = sa.update(StoredBytesRecord).where(StoredBytesRecord.user_id == flow.user_id)
            await setup.execute(slot.values(slot=connection_id))
        await setup.commit()
        for order in (reversed(flows), flows):  # each transaction first locks the slot of the other one's number
            for session, flow in zip(sessions, order, strict=True):
                session.add(ExecutionRecord(flow_id=flow.id, trigger_type=TriggerType.MANUAL))
                await session.flush()
    async with live_database.sessions() as session:
        assert await maintained(session) == await counted(session)


async def test_rows_that_copy_writes_are_counted(live_database: Database, backend: str) -> None:
    if backend == "sqlite":
        pytest.skip("SQLite has no COPY")
    async with live_database.sessions() as session:
        flow = await create_flow(session, await create_user(session))
        connection: Any = await (await session.connection()).get_raw_connection()
        columns = ("id", "flow_id", "trigger_type", "input_payload")
        rows = [(new_id(), flow.id, "manual", "x" * number) for number in range(1_000)]
        await connection.driver_connection.copy_records_to_table("executions", records=rows, columns=columns)
        expected = 1_000 * ROW_BYTES + sum(range(1_000))
        assert await maintained(session) == {(flow.user_id, "executions"): expected} == await counted(session)


async def test_a_step_that_changes_while_its_execution_is_deleted_is_subtracted_once(
    live_database: Database, backend: str
) -> None:
    """Neither transaction locks the execution before, as other programs may do it."""
    if backend == "sqlite":
        pytest.skip("SQLite has one writer")
    async with live_database.sessions() as session:
        flow = await create_flow(session, await create_user(session))
        execution = await create_execution(session, flow)
        session.add(ExecutionStepRecord(execution_id=execution.id, key="1", listener="a"))
        await session.commit()

    async def delete() -> None:
        async with live_database.transaction() as session:
            await session.execute(sa.delete(ExecutionRecord))

    async with live_database.transaction() as session:
        await session.execute(sa.update(ExecutionStepRecord).values(state="x" * 1_000))
        deleting = asyncio.create_task(delete())
        await wait_for_lock_wait(live_database, deleting)
    await deleting
    async with live_database.sessions() as session:
        assert await maintained(session) == {}


async def create_rows(session: AsyncSession) -> ExecutionRecord:
    """An execution with a step, a version and a value of its flow."""
    execution = await create_execution(session, await create_flow(session, await create_user(session)))
    session.add(ExecutionStepRecord(execution_id=execution.id, key="1", listener="a", state="text"))
    session.add(FlowVersionRecord(flow_id=execution.flow_id, number=1, organism_yaml="abc"))
    session.add(KeyValueRecord(flow_id=execution.flow_id, key="key", value="[1]"))
    await session.commit()
    return execution


@pytest.mark.parametrize(
    ("table", "left"),
    [
        ("execution_steps", {"executions", "flow_versions", "key_values"}),
        ("flow_versions", {"key_values"}),  # executions refer to versions
        ("key_values", {"executions", "execution_steps", "flow_versions"}),
        ("executions", {"flow_versions", "key_values"}),
        ("flows", set()),
    ],
)
async def test_rows_of_truncated_tables_do_not_count(
    live_database: Database, backend: str, table: str, left: set[str]
) -> None:
    if backend == "sqlite":
        pytest.skip("SQLite has no TRUNCATE")
    async with live_database.sessions() as session:
        await create_rows(session)
        await session.execute(sa.text(f"TRUNCATE {table} CASCADE"))
        assert {source for _, source in await maintained(session)} == left
        assert await maintained(session) == await counted(session)
        await session.rollback()


async def test_steps_of_a_deleted_execution_do_not_count(session: AsyncSession) -> None:
    execution = await create_rows(session)
    await session.execute(sa.delete(ExecutionRecord).where(ExecutionRecord.id == execution.id))
    assert {source for _, source in await maintained(session)} == {"flow_versions", "key_values"}
    assert await maintained(session) == await counted(session)


async def test_steps_of_an_execution_that_is_moved_count_for_its_new_owner(session: AsyncSession) -> None:
    execution = await create_rows(session)
    flow = await create_flow(session, user := await create_user(session))
    await session.execute(sa.update(ExecutionRecord).where(ExecutionRecord.id == execution.id).values(flow_id=flow.id))
    moved = {source: size for (user_id, source), size in (await maintained(session)).items() if user_id == user.id}
    assert moved["execution_steps"] == ROW_BYTES + len("text")
    assert await maintained(session) == await counted(session)
