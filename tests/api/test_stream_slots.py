"""Limits of concurrent event streams and `?wait` requests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa

from bloxserver.api.main import app
from bloxserver.api.stream_slots import HINT, MAX_REMEMBERED, REMEMBERED_SECONDS, StreamSlots
from bloxserver.errors import LimitReached, Unavailable
from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionRecord, FlowRecord, Tier, UserRecord
from bloxserver.plans import FREE
from bloxserver.services.transitions import cancel_execution
from tests import factories
from tests.api.contract import API, assert_problem, path_of
from tests.statements import count_statements

ADA, GRACE, JOAN = (UUID(int=number) for number in range(3))
LIMIT = FREE.streams


@pytest.fixture
async def flow(live_client: httpx.AsyncClient, live_database: Database) -> FlowRecord:
    await live_client.get(f"{API}/me")
    async with live_database.sessions() as session:
        user = (await session.scalars(sa.select(UserRecord))).one()
        user.tier = Tier.FREE
        flow = await factories.create_flow(session, user)
        await factories.create_trigger(session, flow, webhook_token="the-token")
        return flow


async def accepted(database: Database, count: int) -> list[UUID]:
    async with asyncio.timeout(20):
        while True:
            async with database.transaction(read_only=True) as session:
                ids = list(await session.scalars(sa.select(ExecutionRecord.id)))
            if len(ids) == count:
                return ids
            await asyncio.sleep(0.01)


async def end_all(database: Database, flow: FlowRecord, ids: list[UUID]) -> None:
    for execution_id in ids:
        async with database.transaction() as session:
            await cancel_execution(session, flow.user_id, flow.id, execution_id)


class TestSlots:
    @pytest.mark.parametrize(("held", "accepts"), [(LIMIT - 1, True), (LIMIT, False), (LIMIT + 1, False)])
    def test_limit_of_a_user_is_exact(self, held: int, accepts: bool) -> None:
        slots = StreamSlots()
        open_slots = [slots.take(ADA, replace(FREE, streams=1000)) for _ in range(held)]
        for slot in open_slots:
            slot.__enter__()
        with slots.take(GRACE, FREE):
            pass
        if accepts:
            with slots.take(ADA, FREE):
                pass
        else:
            with pytest.raises(LimitReached) as caught, slots.take(ADA, FREE):
                pass
            assert caught.value.details == {"name": "streams", "limit": LIMIT, "used": held}
        for slot in open_slots:
            slot.__exit__(None, None, None)
        with slots.take(ADA, FREE):
            pass

    def test_users_share_a_full_process(self) -> None:
        slots = StreamSlots(4)
        with slots.take(ADA, FREE), slots.take(ADA, FREE), slots.take(ADA, FREE), slots.take(ADA, FREE):
            with pytest.raises(Unavailable), slots.take(ADA, FREE):
                pass
            with slots.take(GRACE, FREE), slots.take(JOAN, FREE), pytest.raises(Unavailable), slots.take(GRACE, FREE):
                pass


class TestRepeatedRefusals:
    @pytest.fixture
    def held(self) -> Iterator[tuple[StreamSlots, ExitStack, list[float]]]:
        """Slots that Ada uses up, and with whose limit her token was refused."""
        moment = [0.0]
        slots = StreamSlots(clock=lambda: moment[0])
        with ExitStack() as open_slots:
            for _ in range(LIMIT):
                open_slots.enter_context(slots.take(ADA, FREE, "token"))
            with pytest.raises(LimitReached), slots.take(ADA, FREE, "token"):
                pass
            yield slots, open_slots, moment

    def test_refusal_is_repeated_without_the_plan(self, held: tuple[StreamSlots, ExitStack, list[float]]) -> None:
        slots, _, _ = held
        with pytest.raises(LimitReached) as caught:
            slots.refuse_again("token")
        assert caught.value.details == {"name": "streams", "limit": LIMIT, "used": LIMIT}
        slots.refuse_again("other")
        slots.refuse_again("")

    def test_freed_slot_ends_the_refusal(self, held: tuple[StreamSlots, ExitStack, list[float]]) -> None:
        slots, open_slots, _ = held
        open_slots.close()
        slots.refuse_again("token")

    def test_plan_is_read_again_after_a_second(self, held: tuple[StreamSlots, ExitStack, list[float]]) -> None:
        slots, _, moment = held
        moment[0] = REMEMBERED_SECONDS
        slots.refuse_again("token")

    def test_number_of_remembered_credentials_is_limited(
        self, held: tuple[StreamSlots, ExitStack, list[float]]
    ) -> None:
        slots, _, _ = held
        for number in range(3 * MAX_REMEMBERED):
            with pytest.raises(LimitReached), slots.take(ADA, FREE, f"token-{number}"):
                pass
        assert len(slots._refused) <= MAX_REMEMBERED


class TestRequests:
    async def test_wait_over_the_limit_starts_nothing(
        self, live_client: httpx.AsyncClient, live_database: Database, flow: FlowRecord
    ) -> None:
        run, hook = f"{path_of(flow)}/executions/run", "/webhooks/the-token"
        tasks = [
            asyncio.create_task(live_client.post(path, params={"wait": "60"}))
            for path in (run, hook)
            for _ in range(LIMIT // 2)
        ]
        ids = await accepted(live_database, LIMIT)
        message = f"The limit of {LIMIT} streams is reached (in use: {LIMIT}). {HINT}"
        details = {"name": "streams", "limit": LIMIT, "used": LIMIT}
        for path in (run, hook):
            refused = await live_client.post(path, params={"wait": "60"})
            assert_problem(refused, 403, "streams_limit_reached", message, details)
        events = await live_client.get(f"{path_of(flow)}/executions/{ids[0]}/events")
        assert_problem(events, 403, "streams_limit_reached", message, details)
        assert len(await accepted(live_database, LIMIT)) == LIMIT
        assert (await live_client.post(run)).status_code == 201, "without wait"
        await end_all(live_database, flow, ids)
        assert {(await task).json()["status"] for task in tasks} == {"cancelled"}
        assert app.state.stream_slots._open.total() == 0

    async def test_rejected_request_frees_its_slot(self, live_client: httpx.AsyncClient, flow: FlowRecord) -> None:
        await live_client.post(f"{path_of(flow)}/stop")
        for _ in range(LIMIT + 1):
            refused = await live_client.post(f"{path_of(flow)}/executions/run", params={"wait": "60"})
            assert refused.json()["code"] == "flow_not_running"
            unknown = await live_client.get(f"{path_of(flow)}/executions/{flow.id}/events")
            assert unknown.status_code == 404
            assert (await live_client.post("/webhooks/no", params={"wait": "60"})).status_code == 404

    async def test_repeated_refusal_reads_no_database(
        self, live_client: httpx.AsyncClient, live_database: Database, flow: FlowRecord
    ) -> None:
        """The header is not read by the sign-in of the development user, but identifies the client."""
        token = {"Authorization": "Bearer development"}
        hook = "/webhooks/the-token"
        paths = (f"{path_of(flow)}/executions/run", hook)
        tasks = [asyncio.create_task(live_client.post(hook, params={"wait": "60"})) for _ in range(LIMIT)]
        ids = await accepted(live_database, LIMIT)
        events = f"{path_of(flow)}/executions/{ids[0]}/events"
        for path in paths:
            assert (await live_client.post(path, params={"wait": "60"}, headers=token)).status_code == 403
        with count_statements(live_database.engine) as written, count_statements(live_database.reading_engine) as read:
            refused = [await live_client.post(path, params={"wait": "60"}, headers=token) for path in paths]
            refused.append(await live_client.get(events, headers=token))
        assert [(answer.status_code, answer.json()["code"]) for answer in refused] == [
            (403, "streams_limit_reached")
        ] * 3
        # the watcher reads executions all the time
        assert [text for text in written + read if "users" in text or "triggers" in text] == []
        await end_all(live_database, flow, ids)
        await asyncio.gather(*tasks)
        assert (await live_client.get(events, headers=token)).status_code == 200
