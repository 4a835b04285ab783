"""Times, transactions, failed commits, and wake reasons."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID, uuid4

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from bloxserver.api.dependencies import CurrentUser, get_current_user
from bloxserver.api.main import app
from bloxserver.models.database import (
    Base,
    Database,
    WakeReason,
    after_commit,
    begin_writing,
    get_db,
    read_only_request,
    wake_engine_after_commit,
)
from bloxserver.models.default_organism import DEFAULT_ORGANISM
from bloxserver.models.tables import (
    ExecutionRecord,
    FlowRecord,
    Tier,
    TriggerRecord,
    TriggerType,
    UsageRecord,
    UserRecord,
)
from bloxserver.settings import Settings
from tests.sqlite_threads import join_connection_threads

TOKYO = timezone(timedelta(hours=9))
INSTANTS = [
    (datetime(2026, 6, 1, 12, 0, 0, 1, tzinfo=UTC), datetime(2026, 6, 1, 12, 0, 0, 1, tzinfo=UTC)),
    (datetime(2026, 6, 1, 12, 0, 0, 999_999, tzinfo=TOKYO), datetime(2026, 6, 1, 3, 0, 0, 999_999, tzinfo=UTC)),
    (datetime(2026, 6, 1, 12), datetime(2026, 6, 1, 12, tzinfo=UTC)),  # noqa: DTZ001
    (datetime(1970, 1, 1, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)),
    (datetime(9000, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), datetime(9000, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
]


async def count(database: Database, table: type[UserRecord | FlowRecord] = UserRecord) -> int:
    async with database.transaction(read_only=True) as session:
        return await session.scalar(sa.select(sa.func.count()).select_from(table)) or 0


class TestUtcDateTime:
    @pytest.mark.parametrize(("written", "read"), INSTANTS)
    async def test_time_is_stored_with_microseconds_in_utc(
        self, session: AsyncSession, written: datetime, read: datetime
    ) -> None:
        session.add(UserRecord(clerk_id="a", trial_ends_at=written))
        await session.commit()
        stored = await session.scalar(sa.select(UserRecord.trial_ends_at))
        assert stored == read
        assert stored is not None
        assert stored.tzinfo is UTC

    @pytest.mark.parametrize(("written", "read"), INSTANTS)
    async def test_times_in_different_zones_are_compared_as_instants(
        self, session: AsyncSession, written: datetime, read: datetime
    ) -> None:
        tick = timedelta(microseconds=1)
        session.add_all(
            UserRecord(clerk_id=str(moment), trial_ends_at=moment) for moment in (read - tick, read, read + tick)
        )
        await session.commit()
        later = await session.scalars(sa.select(UserRecord.trial_ends_at).where(UserRecord.trial_ends_at > written))
        assert later.all() == [read + tick]
        assert await session.scalar(sa.select(sa.func.max(UserRecord.trial_ends_at))) == read + tick

    async def test_times_are_sorted_chronologically(self, session: AsyncSession) -> None:
        moments = [read for _, read in INSTANTS]
        session.add_all(UserRecord(clerk_id=str(moment), trial_ends_at=moment) for moment in moments)
        await session.commit()
        ordered = await session.scalars(sa.select(UserRecord.trial_ends_at).order_by(UserRecord.trial_ends_at))
        assert ordered.all() == sorted(moments)


async def test_rows_inserted_by_raw_sql_get_readable_defaults(session: AsyncSession) -> None:
    """Columns that the statement omits have the defaults of the models."""
    began = datetime.now(UTC)
    await session.execute(sa.text("INSERT INTO users (clerk_id) VALUES ('raw')"))
    user = (await session.scalars(sa.select(UserRecord))).one()
    key = user.id.hex
    if session.get_bind().dialect.name == "postgresql":
        key = str(user.id)
    await session.execute(sa.text("INSERT INTO flows (user_id, name) VALUES (:key, 'raw')"), {"key": key})
    flow = (await session.scalars(sa.select(FlowRecord))).one()
    key = flow.id.hex if key == user.id.hex else str(flow.id)
    for statement in (
        "INSERT INTO triggers (flow_id, type, name) VALUES (:key, 'manual', 'raw')",
        "INSERT INTO executions (flow_id, trigger_type) VALUES (:key, 'manual')",
    ):
        await session.execute(sa.text(statement), {"key": key})
    trigger = (await session.scalars(sa.select(TriggerRecord))).one()
    execution = (await session.scalars(sa.select(ExecutionRecord))).one()
    for row in (user, flow, trigger, execution):
        assert isinstance(row.id, UUID)
    moments = [user.created_at, user.updated_at, flow.created_at, flow.updated_at, trigger.created_at]
    for moment in (*moments, execution.started_at):
        assert moment.tzinfo is UTC
        assert abs(moment - began) < timedelta(minutes=1)
    assert (user.tier, user.billing_status, user.email) == ("free", "active", "")
    assert (flow.status, flow.organism_yaml, flow.canvas_state) == ("stopped", DEFAULT_ORGANISM, None)
    assert (trigger.type, trigger.config, trigger.webhook_url) == (TriggerType.MANUAL, {}, None)
    assert (execution.status, execution.input_encoding, execution.crash_count) == ("running", "text", 0)
    await session.execute(sa.insert(Base.metadata.tables["usage_records"]), {"user_id": user.id, "period_start": began})
    usage = (await session.scalars(sa.select(UsageRecord))).one()
    assert (usage.slot, usage.workflow_runs, usage.llm_tokens_in) == (0, 0, 0)


async def test_times_inserted_by_raw_sql_are_returned_with_an_offset(
    client: httpx.AsyncClient, session: AsyncSession
) -> None:
    await session.execute(sa.text("INSERT INTO users (clerk_id, tier) VALUES ('dev_user_001', 'pro')"))
    await session.commit()
    created = (await client.get("/api/v1/me")).json()["createdAt"]
    assert created.endswith("Z")
    assert abs(datetime.fromisoformat(created) - datetime.now(UTC)) < timedelta(minutes=1)


class TestReadingSessions:
    async def test_reading_session_does_not_wait_for_a_writer(self, live_database: Database) -> None:
        async with asyncio.timeout(5), live_database.transaction() as writer:
            writer.add(UserRecord(clerk_id="a"))
            await writer.flush()
            readings = [count(live_database) for _ in range(20)]
            assert await asyncio.gather(*readings) == [0] * 20
        assert await count(live_database) == 1

    async def test_reading_session_can_write_after_begin_writing(self, live_database: Database) -> None:
        async with live_database.transaction(read_only=True) as session:
            assert await session.scalar(sa.select(UserRecord.clerk_id)) is None
            async with live_database.transaction() as other:
                other.add(UserRecord(clerk_id="of another"))
            await begin_writing(session)
            assert await session.scalar(sa.select(UserRecord.clerk_id)) == "of another"
            session.add(UserRecord(clerk_id="ours"))
            await begin_writing(session)
            await session.flush()
        assert await count(live_database) == 2

    async def test_reading_session_cannot_write_on_sqlite(self, live_database: Database, backend: str) -> None:
        """Writing would block other writers on SQLite. PostgreSQL makes no difference."""
        if backend == "sqlite":
            async with live_database.transaction(read_only=True) as session:
                with pytest.raises(OperationalError, match="readonly"):
                    await session.execute(sa.insert(UserRecord).values(clerk_id="a"))
        assert await count(live_database) == 0

    async def test_begin_writing_ignores_other_sessions(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        async with sessions() as session:
            session.add(UserRecord(clerk_id="a"))
            await session.flush()
            await begin_writing(session)
            await session.commit()
            assert await session.scalar(sa.select(UserRecord.clerk_id)) == "a"

    async def test_get_request_can_create_its_user(
        self, live_client: httpx.AsyncClient, live_database: Database
    ) -> None:
        responses = await asyncio.gather(*(live_client.get("/api/v1/flows") for _ in range(20)))
        assert {response.status_code for response in responses} == {200}
        assert await count(live_database) == 1
        assert read_only_request.get() is False


class TestTransactions:
    async def test_exception_rolls_the_transaction_back(self, live_database: Database) -> None:
        async def write() -> None:
            async with live_database.transaction() as session:
                session.add(UserRecord(clerk_id="a"))
                await session.flush()
                raise KeyError

        with pytest.raises(KeyError):
            await write()
        assert await count(live_database) == 0

    async def test_cancellation_rolls_the_transaction_back(self, live_database: Database) -> None:
        entered = asyncio.Event()

        async def write() -> None:
            async with live_database.transaction() as session:
                session.add(UserRecord(clerk_id="a"))
                await session.flush()
                entered.set()
                await asyncio.Event().wait()

        writing = asyncio.create_task(write())
        await entered.wait()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert await count(live_database) == 0

    async def test_created_resource_is_visible_after_the_response(self, live_client: httpx.AsyncClient) -> None:
        for _ in range(20):
            created = (await live_client.post("/api/v1/flows", json={"name": "A flow"})).json()
            assert (await live_client.get(f"/api/v1/flows/{created['id']}")).json() == created


class TestFailedCommit:
    async def test_constraint_violation_at_commit_is_an_error_and_rolls_back(
        self, live_client: httpx.AsyncClient, live_database: Database, backend: str
    ) -> None:
        async with live_database.engine.begin() as connection:
            if backend == "postgresql":
                name = "fk_flows_user_id_users"
                await connection.execute(
                    sa.text(f"ALTER TABLE flows ALTER CONSTRAINT {name} DEFERRABLE INITIALLY DEFERRED")
                )

        def defer(connection: sa.Connection) -> None:
            if backend == "sqlite":
                connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")

        event.listen(live_database.engine.sync_engine, "begin", defer)
        nobody = CurrentUser(UserRecord(id=uuid4(), clerk_id="gone", tier=Tier.PRO), {})
        app.dependency_overrides[get_current_user] = lambda: nobody
        response = await live_client.post("/api/v1/flows", json={"name": "A flow"})
        assert response.status_code == {"sqlite": 409, "postgresql": 404}[backend]
        assert response.headers["Content-Type"] == "application/problem+json"
        event.remove(live_database.engine.sync_engine, "begin", defer)
        assert await count(live_database, FlowRecord) == 0
        async with live_database.transaction() as session:
            session.add(UserRecord(clerk_id="the next one that writes"))

    @pytest.mark.parametrize(
        ("error", "status"),
        [(ConnectionResetError("lost"), 503), (TimeoutError(), 503), (RuntimeError("a secret"), 500)],
    )
    async def test_failed_commit_is_an_error_response(
        self, sessions: async_sessionmaker[AsyncSession], client: httpx.AsyncClient, error: Exception, status: int
    ) -> None:
        async def override() -> AsyncIterator[AsyncSession]:
            async with sessions() as session:
                yield session
                await session.rollback()
                raise error

        app.dependency_overrides[get_db] = override
        for method, path in (("POST", "/api/v1/flows"), ("GET", "/api/v1/flows")):
            response = await client.request(method, path, json={"name": "A flow"})
            assert (response.status_code, response.json()["status"]) == (status, status)
            assert "secret" not in response.text
            assert ("Retry-After" in response.headers) == (status == 503)
        async with sessions() as session:
            assert await session.scalar(sa.select(FlowRecord.id)) is None

    @pytest.mark.parametrize("path", ["/api/v1/flows", "/api/v1/usage", "/webhooks/token/test"])
    async def test_unreachable_database_is_503(self, path: str, backend: str, backend_url: str) -> None:
        url = sa.make_url(backend_url).set(database="/nowhere/at/all.db")
        if backend == "postgresql":
            url = sa.make_url("postgresql+asyncpg://nobody@127.0.0.1:1/nothing")
        database = Database(Settings(database_url=url.render_as_string(hide_password=False)))

        async def override() -> AsyncIterator[AsyncSession]:
            async with database.request_transaction() as session:
                yield session

        app.dependency_overrides[get_db] = override
        try:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
                response = await client.get(path)
                ready = await client.get("/health/ready")
                alive = await client.get("/health/live")
        finally:
            app.dependency_overrides.clear()
            await database.dispose()
            await join_connection_threads()
        assert (response.status_code, response.json()["code"]) == (503, "database_unavailable")
        assert response.headers["Retry-After"]
        assert (ready.status_code, ready.json()["checks"]) == (503, {"database": "failed"})
        assert alive.status_code == 200


class TestWakeReasons:
    async def test_engine_is_woken_only_after_the_outer_commit(self, live_database: Database) -> None:
        seen: list[str] = []
        unlisten = live_database.on_commit(lambda work: seen.extend(work))
        async with live_database.transaction() as session:
            async with session.begin_nested():
                session.add(UserRecord(clerk_id="a"))
                wake_engine_after_commit(session, WakeReason.FLOW)
            assert seen == [], "a savepoint is not to be seen by others"
        assert seen == ["flow"]
        async with live_database.transaction() as session:
            session.add(UserRecord(clerk_id="b"))
        assert seen == ["flow"], "a commit that left no work"
        with suppress(KeyError):
            async with live_database.transaction() as session:
                wake_engine_after_commit(session, WakeReason.FLOW)
                await session.execute(sa.select(1))
                raise KeyError
        assert seen == ["flow"], "rolled back"
        async with live_database.transaction(read_only=True) as session:
            await begin_writing(session)
            session.add(UserRecord(clerk_id="c"))
            wake_engine_after_commit(session, WakeReason.FLOW)
        assert seen == ["flow"] * 2
        unlisten()
        async with live_database.transaction() as session:
            session.add(UserRecord(clerk_id="d"))
            wake_engine_after_commit(session, WakeReason.FLOW)
        assert seen == ["flow"] * 2

    async def test_a_single_statement_is_committed_at_once_on_postgresql(self, live_database: Database) -> None:
        names = sa.select(UserRecord.clerk_id)
        seen: list[str] = []
        unlisten = live_database.on_commit(lambda work: seen.extend(reason.value for reason in work))
        async with live_database.transaction(single_statement=True) as session:
            await session.execute(sa.insert(UserRecord).values(clerk_id="a"))
            wake_engine_after_commit(session, WakeReason.FLOW)
            if not live_database.is_sqlite:  # an in-memory database has one connection
                assert (await live_database.statements.execute(names, {})).all() == [("a",)]
            assert seen == []
        unlisten()
        assert seen == ["flow"]
        async with live_database.transaction() as session:
            assert (await session.scalars(names)).all() == ["a"]

    async def test_every_listener_is_called(self, live_database: Database) -> None:
        seen: list[str] = []
        unlisten = [live_database.on_commit(lambda work, name=name: seen.append(name)) for name in ("one", "other")]  # type: ignore[misc]
        async with live_database.transaction() as session:
            session.add(UserRecord(clerk_id="a"))
            wake_engine_after_commit(session, WakeReason.FLOW)
        for end in unlisten:
            end()
        assert seen == ["one", "other"]

    async def test_work_is_visible_when_the_engine_is_woken(self, live_database: Database) -> None:
        """The callback reads in a separate transaction."""
        counts: list[asyncio.Task[int]] = []
        unlisten = live_database.on_commit(lambda work: counts.append(asyncio.create_task(count(live_database))))
        async with live_database.transaction() as session:
            session.add(UserRecord(clerk_id="a"))
            wake_engine_after_commit(session, WakeReason.FLOW)
        unlisten()
        assert await asyncio.gather(*counts) == [1]

    async def test_commits_in_another_database_do_not_wake_the_engine(
        self, live_database: Database, live_settings: Settings
    ) -> None:
        other = Database(live_settings)
        seen: list[str] = []
        unlisten = other.on_commit(lambda work: seen.extend(work))
        async with live_database.transaction() as session:
            session.add(UserRecord(clerk_id="a"))
            wake_engine_after_commit(session, WakeReason.FLOW)
        unlisten()
        await other.dispose()
        assert seen == []


async def test_callback_runs_only_after_a_commit(live_database: Database) -> None:
    called: list[str] = []
    async with live_database.transaction() as session:
        async with session.begin_nested():
            after_commit(session, lambda: called.append("kept"))
        assert called == []
    assert called == ["kept"]
    async with live_database.transaction(read_only=True) as session:
        await session.execute(sa.select(1))
        after_commit(session, lambda: called.append("undone"))
        await begin_writing(session)
        await session.execute(sa.select(1))
    assert called == ["kept"]
