"""Migrations match the models, and keep the rows of users in both directions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.ids import new_id
from bloxserver.models import migrate, tables
from bloxserver.models.database import Base, Database
from bloxserver.models.migrate import SchemaState
from bloxserver.models.stored_bytes import ROW_BYTES, SOURCES
from bloxserver.models.types import UtcDateTime
from tests.factories import create_execution, create_flow, create_trigger, create_user
from tests.models.migrating import MOMENT, contents, downgrade, empty, fill, state


async def test_migrations_run_up_down_and_up_with_data(database: Database) -> None:
    assert await state(database) is SchemaState.MISSING
    for _ in range(2):
        await database.migrate()
        assert await state(database) is SchemaState.CURRENT
        async with database.transaction() as session:
            await fill(session)
        before = await contents(database)
        of_triggers = {"stored_bytes": 1 + len(SOURCES), "execution_totals": 2, "execution_series": 3}
        assert {name: len(rows) for name, rows in before.items()} == dict.fromkeys(before, 1) | of_triggers
        assert len(before) == 35
        await database.migrate()
        assert await contents(database) == before, "a second migration changes nothing"
        await downgrade(database)
        assert await state(database) is SchemaState.MISSING
        async with database.engine.connect() as connection:
            assert await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names()) == ["alembic_version"]


async def test_0008_keeps_notifications_of_executions_both_ways(database: Database) -> None:
    """On SQLite it replaces the table by a copy."""
    ids = {"user": new_id(), "flow": new_id(), "trigger": new_id(), "execution": new_id()}
    columns = {
        "id": sa.Uuid,
        "execution_id": sa.Uuid,
        "channel": sa.String,
        "due_at": UtcDateTime,
        "attempts": sa.Integer,
    }
    notices = sa.table("failure_notifications", *(sa.column(name, kind) for name, kind in columns.items()))
    kept = {"id": new_id(), "execution_id": ids["execution"], "channel": "url", "due_at": MOMENT, "attempts": 4}

    async def read(session: AsyncSession) -> list[dict[str, Any]]:
        return [dict(row._mapping) for row in await session.execute(sa.select(notices))]

    async with database.engine.begin() as connection:
        await connection.run_sync(migrate.upgrade, "0007")
    async with database.transaction() as session:
        await insert_by_hand(session, "users", id=ids["user"], clerk_id="c", email="a@b.c")
        await insert_by_hand(session, "flows", id=ids["flow"], user_id=ids["user"], name="f", organism_yaml="x")
        await insert_by_hand(session, "triggers", id=ids["trigger"], flow_id=ids["flow"], type="schedule", name="t")
        execution = {"id": ids["execution"], "flow_id": ids["flow"], "trigger_type": "manual"}
        await insert_by_hand(session, "executions", **execution)
        await session.execute(sa.insert(notices).values(kept))
    async with database.engine.begin() as connection:
        await connection.run_sync(migrate.upgrade, "0008")
    async with database.transaction() as session:
        assert await read(session) == [kept]
        await insert_by_hand(session, "failure_notifications", id=new_id(), trigger_id=ids["trigger"], channel="url")
        triggers = sa.text("SELECT disabled_reason, failed_attempts, last_error, retry_at FROM triggers")
        assert [tuple(row) for row in await session.execute(triggers)] == [(None, 0, None, None)]
        assert await session.scalar(sa.select(sa.func.count()).select_from(notices)) == 2
    async with database.engine.begin() as connection:
        await connection.run_sync(migrate.downgrade, "0007")
    async with database.transaction() as session:
        assert await read(session) == [kept]
        with pytest.raises(IntegrityError):
            await session.execute(sa.insert(notices).values(kept | {"id": new_id(), "execution_id": None}))


async def insert_by_hand(session: AsyncSession, table: str, **values: Any) -> None:
    """A row of an older schema."""
    columns = (
        sa.column(name, sa.Uuid) if isinstance(value, UUID) else sa.column(name) for name, value in values.items()
    )
    await session.execute(sa.insert(sa.table(table, *columns)).values(values))


async def test_0011_counts_the_bytes_of_existing_rows(database: Database) -> None:
    user, other, flow, execution = (new_id() for _ in range(4))

    async def migrated(change: Callable[[sa.Connection, str], None], revision: str) -> None:
        async with database.engine.begin() as connection:
            await connection.run_sync(change, revision)

    await migrated(migrate.upgrade, "0010")
    async with database.transaction() as session:
        for id in (user, other):
            await insert_by_hand(session, "users", id=id, clerk_id=id.hex)
        await insert_by_hand(session, "flows", id=flow, user_id=user, name="f", organism_yaml="x")
        await insert_by_hand(session, "flow_versions", id=new_id(), flow_id=flow, number=1, organism_yaml="xyz")
        await insert_by_hand(
            session, "executions", id=execution, flow_id=flow, trigger_type="manual", input_payload="\u20ac"
        )
        for key in ("1", "2"):
            await insert_by_hand(
                session, "execution_steps", id=new_id(), execution_id=execution, key=key, listener="a", state="12"
            )
        await insert_by_hand(session, "key_values", flow_id=flow, key="k", value="1")
    await migrated(migrate.upgrade, "0011")
    sizes = {"flow_versions": 3, "executions": 3, "execution_steps": ROW_BYTES + 4, "key_values": 2}
    record = tables.StoredBytesRecord
    counts = sa.select(record.user_id, record.source, record.bytes)
    async with database.transaction() as session:
        rows = [tuple(row) for row in await session.execute(counts)]
        assert sorted(rows) == sorted((user, source, ROW_BYTES + size) for source, size in sizes.items())
        await session.execute(sa.text("DELETE FROM execution_steps"))
        steps = counts.where(record.source == "execution_steps")
        assert [row.bytes for row in await session.execute(steps)] == [0]
    await migrated(migrate.downgrade, "0010")
    async with database.transaction() as session:
        await insert_by_hand(session, "key_values", flow_id=flow, key="other", value="1")
        assert await session.scalar(sa.text("SELECT count(*) FROM executions")) == 1


async def test_0015_counts_existing_executions_and_those_of_older_programs(database: Database) -> None:
    flow = new_id()

    async def migrated(change: Callable[[sa.Connection, str], None], revision: str) -> None:
        async with database.engine.begin() as connection:
            await connection.run_sync(change, revision)

    async def write(session: AsyncSession, *statuses: str) -> None:
        """Insert executions as a program that does not know their mode."""
        for status in statuses:
            values = {"id": new_id(), "flow_id": flow, "trigger_type": "manual", "status": status}
            await insert_by_hand(session, "executions", **values, duration_ms=10)

    async def statuses() -> dict[str, list[int]]:
        record = tables.ExecutionTotalsRecord
        sums = [sa.func.sum(column) for column in (record.executions, record.running, record.error, record.duration_ms)]
        async with database.transaction(read_only=True) as session:
            rows = await session.execute(sa.select(record.mode, *sums).group_by(record.mode))
            return {mode: [int(value) for value in values] for mode, *values in rows}

    old_function = """CREATE OR REPLACE FUNCTION stored_bytes_executions_insert() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN PERFORM pg_backend_pid(); RETURN NULL; END $$"""
    await migrated(migrate.upgrade, "0014")
    async with database.transaction() as session:
        user = new_id()
        await insert_by_hand(session, "users", id=user, clerk_id="c")
        await insert_by_hand(session, "flows", id=flow, user_id=user, name="f", organism_yaml="x")
        await write(session, "running", "error", "error")
        if session.get_bind().dialect.name == "postgresql":
            await session.execute(sa.text(old_function))
    await migrated(migrate.upgrade, "0015")
    assert await statuses() == {"normal": [3, 1, 2, 30]}
    async with database.transaction() as session:
        await write(session, "running", "success")
        await session.execute(sa.text("UPDATE executions SET status = 'error' WHERE status = 'running'"))
    assert await statuses() == {"normal": [5, 0, 4, 50]}
    async with database.transaction() as session:
        assert await session.scalar(sa.text("SELECT sum(executions) FROM execution_series WHERE seconds = 900")) == 5
        if session.get_bind().dialect.name == "postgresql":
            of_connections = "SELECT count(*) FROM pg_proc WHERE proname LIKE 'stored%' AND prosrc LIKE '%backend_pid%'"
            assert await session.scalar(sa.text(of_connections)) == 0
    await migrated(migrate.downgrade, "0014")
    async with database.transaction() as session:
        await write(session, "running")
        assert await session.scalar(sa.text("SELECT count(*) FROM executions")) == 6
    await migrated(migrate.upgrade, "0015")
    assert await statuses() == {"normal": [6, 1, 4, 60]}


OF_FLOW = (
    "flows",
    "triggers",
    "executions",
    "execution_steps",
    "flow_versions",
    "key_values",
    "failure_notifications",
)


async def test_a_downgrade_finishes_pending_deletions(database: Database) -> None:
    await database.migrate()
    async with database.transaction() as session:
        user = await create_user(session)
        kept, gone = await create_flow(session, user, name="Kept"), await create_flow(session, user, deleted_at=MOMENT)
        for flow in (kept, gone):
            trigger = await create_trigger(session, flow, deleted_at=MOMENT)
            execution = await create_execution(session, flow, trigger_id=trigger.id)
            session.add(tables.ExecutionStepRecord(execution_id=execution.id, key="1", listener="a"))
            session.add(tables.FailureNotificationRecord(execution_id=execution.id, channel="url"))
            session.add(tables.FailureNotificationRecord(trigger_id=trigger.id, channel="url"))
            session.add(tables.FlowVersionRecord(flow_id=flow.id, number=1, organism_yaml="x"))
            session.add(tables.KeyValueRecord(flow_id=flow.id, key="k"))
            await create_trigger(session, flow)
    async with database.engine.begin() as connection:
        await connection.run_sync(migrate.downgrade, "0009")
    async with database.engine.connect() as connection:
        counts = {
            name: await connection.scalar(sa.text(f"SELECT count(*) FROM {name}"))  # noqa: S608
            for name in OF_FLOW
        }
        assert counts == dict.fromkeys(OF_FLOW, 1)
        row = (await connection.execute(sa.text("SELECT f.name, e.trigger_id FROM executions e, flows f"))).one()
        assert tuple(row) == ("Kept", None)
    await database.migrate()
    assert await state(database) is SchemaState.CURRENT


async def test_models_match_the_migrations(database: Database) -> None:
    await database.migrate()
    async with database.engine.connect() as connection:
        await connection.run_sync(migrate.check)


def schema(connection: sa.Connection) -> dict[str, Any]:
    """Return the description of all tables, in an order that does not depend on their creation."""
    inspector = sa.inspect(connection)
    description = {}
    for table in Base.metadata.tables:
        constraints: dict[str, Sequence[object]] = {
            "indexes": inspector.get_indexes(table),
            "foreign keys": inspector.get_foreign_keys(table),
            "unique": inspector.get_unique_constraints(table),
            "checks": inspector.get_check_constraints(table),
        }
        columns = [dict(column) | {"type": repr(column["type"])} for column in inspector.get_columns(table)]
        described = {
            name: sorted(json.dumps(one, default=str, sort_keys=True) for one in found)
            for name, found in (constraints | {"columns": columns}).items()
        }
        description[table] = described | {"primary key": [str(inspector.get_pk_constraint(table))]}
    return description


async def test_create_all_creates_the_same_schema_as_migrations(database: Database) -> None:
    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        made = await connection.run_sync(schema)
        await connection.run_sync(empty)
    assert await state(database) is SchemaState.MISSING
    await database.migrate()
    async with database.engine.connect() as connection:
        migrated = await connection.run_sync(schema)
    for table, described in made.items():
        assert migrated[table] == described, table
