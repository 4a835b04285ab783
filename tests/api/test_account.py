"""`DELETE /api/v1/me` and `GET /api/v1/me/export`."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any
from zipfile import ZipFile

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api import account_export
from bloxserver.api.main import app
from bloxserver.models.database import Database
from bloxserver.models.enums import NotificationChannel, Scope
from bloxserver.models.tables import (
    ApiKeyRecord,
    AuditEventRecord,
    ExecutionRecord,
    ExecutionStepRecord,
    FailureNotificationRecord,
    FlowRecord,
    FlowVersionRecord,
    KeyValueRecord,
    SecretRecord,
    SigningSecretRecord,
    TriggerRecord,
    UserApiKeyRecord,
    UserRecord,
)
from bloxserver.plans import get_plan
from bloxserver.queries.exports import PARTS
from bloxserver.raw_json import MAX_CHARACTERS
from bloxserver.services.api_keys import NewKey, create_api_key
from tests import factories
from tests.api.contract import API, assert_problem, covers
from tests.clerk import Clerk, clerk_authentication
from tests.models import migrating

ADA = "user_ada"
ME, EXPORT = f"{API}/me", f"{API}/me/export"
CANARY = "canary-of-a-credential"
HIDDEN: dict[type[Any], list[str]] = {
    TriggerRecord: ["webhook_token", "previous_token", "own_webhook_url"],
    SecretRecord: ["ciphertext"],
    SigningSecretRecord: ["ciphertext"],
    ApiKeyRecord: ["key_hash"],
    UserApiKeyRecord: ["encrypted_key"],
}
"""Columns of credentials."""


@pytest.fixture
async def clerk() -> AsyncIterator[Clerk]:
    async with clerk_authentication() as clerk:
        yield clerk


@pytest.fixture
async def ada(session: AsyncSession) -> UserRecord:
    return await factories.create_user(session, clerk_id=ADA)


@covers("me.delete", "identity.deleted")
async def test_deleted_user_is_refused(
    client: httpx.AsyncClient, session: AsyncSession, clerk: Clerk, ada: UserRecord
) -> None:
    flow = await factories.create_flow(session, ada)
    response = await client.delete(ME, headers=clerk.headers(ADA))
    assert (response.status_code, response.content) == (204, b"")
    for path in (ME, f"{API}/flows", f"{API}/flows/{flow.id}"):
        response = await client.get(path, headers=clerk.headers(ADA))
        assert_problem(response, 401, "account_deleted", "The account was deleted")
        assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert (await client.get(ME, headers=clerk.headers("user_other"))).status_code == 200


async def test_first_request_of_a_user_can_be_their_deletion(client: httpx.AsyncClient, clerk: Clerk) -> None:
    assert (await client.delete(ME, headers=clerk.headers(ADA))).status_code == 204
    assert (await client.delete(ME, headers=clerk.headers(ADA))).status_code == 401


@covers("me.delete.development")
async def test_development_user_cannot_be_deleted(client: httpx.AsyncClient, session: AsyncSession) -> None:
    response = await client.delete(ME)
    assert_problem(response, 403, "development_user", "The development user cannot be deleted")
    assert await session.scalar(sa.select(UserRecord.deleted_at)) is None


@covers("me.delete", "me.export")
@pytest.mark.parametrize(("method", "path"), [("DELETE", ME), ("GET", EXPORT)])
async def test_key_of_some_flows_neither_deletes_nor_exports(
    client: httpx.AsyncClient, session: AsyncSession, clerk: Clerk, ada: UserRecord, method: str, path: str
) -> None:
    flow = await factories.create_flow(session, ada)
    _, key = await create_api_key(session, ada.id, NewKey("key", [*Scope], [flow.id]))
    await session.commit()
    response = await client.request(method, path, headers={"Authorization": f"Bearer {key}"})
    assert_problem(response, 403, "flow_restricted", "The API key is restricted to flows")


async def files_of(client: httpx.AsyncClient, headers: dict[str, str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """The files of the export by their names."""
    response = await client.get(EXPORT, headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/zip"
    assert response.headers["content-disposition"].startswith('attachment; filename="bloxserver-20')
    with ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.testzip() is None
        return {name.removesuffix(".json"): json.loads(archive.read(name)) for name in archive.namelist()}


async def fill(session: AsyncSession) -> UserRecord:
    """A row with values for all columns in every table, for one user."""
    await migrating.fill(session)
    for table in (UserRecord, FlowRecord, TriggerRecord):
        await session.execute(sa.update(table).values(deleted_at=None))
    await session.execute(sa.update(UserRecord).values(clerk_id=ADA, disabled_at=None))
    # A notification about a budget has a flow instead of an execution or a trigger.
    flow_id = await session.scalar(sa.select(FlowRecord.id))
    session.add(FailureNotificationRecord(flow_id=flow_id, subject="s", channel=NotificationChannel.URL))
    await session.commit()
    return (await session.scalars(sa.select(UserRecord))).one()


@covers("me.export")
async def test_export_has_a_row_of_every_table(client: httpx.AsyncClient, session: AsyncSession, clerk: Clerk) -> None:
    user = await fill(session)
    files = await files_of(client, clerk.headers(ADA))
    assert list(files) == [part.name for part in PARTS]
    assert {name: len(rows) for name, rows in files.items()} == {part.name: 1 for part in PARTS}
    for part in PARTS:
        assert list(files[part.name][0]) == list(part.columns)
    profile = files["profile"][0]
    assert (profile["id"], profile["clerkId"], profile["currentPeriodEnd"]) == (
        str(user.id),
        ADA,
        "2026-06-01T12:30:45.123456Z",
    )
    assert files["flows"][0]["canvasState"] == {"a": [1, None]}


@covers("me.export.secrets")
async def test_export_has_no_credential(client: httpx.AsyncClient, session: AsyncSession, clerk: Clerk) -> None:
    await fill(session)
    for table, columns in HIDDEN.items():
        for name in columns:
            column = getattr(table, name)
            is_binary = isinstance(column.type, sa.LargeBinary)
            await session.execute(sa.update(table).values({name: CANARY.encode() if is_binary else CANARY}))
    await session.commit()
    response = await client.get(EXPORT, headers=clerk.headers(ADA))
    with ZipFile(io.BytesIO(response.content)) as archive:
        for name in archive.namelist():
            text = archive.read(name)
            assert CANARY.encode() not in text, name
            assert CANARY.encode().hex().encode() not in text, name


@covers("me.export")
async def test_export_has_no_row_of_another_user(
    client: httpx.AsyncClient, session: AsyncSession, clerk: Clerk, ada: UserRecord
) -> None:
    await fill_flow(session, await factories.create_user(session))
    mine = await fill_flow(session, ada)
    files = await files_of(client, clerk.headers(ADA))
    assert [flow["id"] for flow in files["flows"]] == [str(mine.id)]
    assert [profile["id"] for profile in files["profile"]] == [str(ada.id)]
    for name in ("versions", "triggers", "executions", "key_values"):
        assert [row["flowId"] for row in files[name]] == [str(mine.id)], name
    assert len(files["steps"]) == 1


async def fill_flow(session: AsyncSession, user: UserRecord) -> FlowRecord:
    flow = await factories.create_flow(session, user)
    await factories.create_trigger(session, flow)
    execution = await factories.create_execution(session, flow)
    session.add(ExecutionStepRecord(execution_id=execution.id, key="1", listener="a"))
    session.add(FlowVersionRecord(flow_id=flow.id, number=1, organism_yaml="x"))
    session.add(KeyValueRecord(flow_id=flow.id, key="k"))
    await session.commit()
    return flow


async def test_deleted_flows_and_triggers_are_left_out(
    client: httpx.AsyncClient, session: AsyncSession, clerk: Clerk
) -> None:
    await fill(session)
    await session.execute(sa.update(FlowRecord).values(deleted_at=sa.func.current_timestamp()))
    await session.commit()
    files = await files_of(client, clerk.headers(ADA))
    assert {name for name, rows in files.items() if rows} == {part.name for part in PARTS if part.owner.name == "USER"}


async def test_names_of_operators_are_left_out(
    client: httpx.AsyncClient, session: AsyncSession, clerk: Clerk, ada: UserRecord
) -> None:
    for actor in ("operator", "identity_provider"):
        values = {"actor": actor, "actor_id": "root", "action": "user.enabled", "resource_id": "r"}
        session.add(AuditEventRecord(user_id=ada.id, **values))
    await session.commit()
    events = (await files_of(client, clerk.headers(ADA)))["audit_events"]
    assert {event["actor"]: event["actorId"] for event in events} == {"operator": None, "identity_provider": "root"}


TEXTS = ['"quoted"\\', "line\nand\ttab", "é😀", "\x01", "x" * 100_000, "😀" * 40_000, ""]


async def test_texts_and_large_values_are_unchanged(
    client: httpx.AsyncClient, session: AsyncSession, clerk: Clerk, ada: UserRecord
) -> None:
    canvas = {"nodes": ["é" * 10 for _ in range(MAX_CHARACTERS // 8)]}
    flow = await factories.create_flow(session, ada, canvas_state=canvas, description="😀")
    session.add_all([ExecutionRecord(flow_id=flow.id, trigger_type="manual", input_payload=text) for text in TEXTS])
    await session.commit()
    files = await files_of(client, clerk.headers(ADA))
    assert (files["flows"][0]["canvasState"], files["flows"][0]["description"]) == (canvas, "😀")
    assert sorted(row["inputPayload"] for row in files["executions"]) == sorted(TEXTS)


async def test_unknown_values_of_a_newer_version_are_exported(
    client: httpx.AsyncClient, session: AsyncSession, clerk: Clerk, ada: UserRecord
) -> None:
    flow = await factories.create_flow(session, ada)
    await factories.create_execution(session, flow)
    for table in ("executions", "flows"):
        await session.execute(sa.text(f"UPDATE {table} SET status = 'paused'"))  # noqa: S608
    await session.commit()
    files = await files_of(client, clerk.headers(ADA))
    assert (files["executions"][0]["status"], files["flows"][0]["status"]) == ("paused", "paused")


async def test_export_holds_no_connection_between_pages(
    live_client: httpx.AsyncClient, live_database: Database, clerk: Clerk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever a part of the ZIP is written, the pool has all its connections."""
    async with live_database.transaction() as session:
        user = await factories.create_user(session, clerk_id=ADA)
        await fill_flow(session, user)
    used: list[int] = []
    joined = account_export._joined

    async def observed(texts: AsyncIterator[str]) -> AsyncIterator[str]:
        async for text in joined(texts):
            used.append(sum(pool.checkedout() for pool in live_database.pools().values()))
            yield text

    monkeypatch.setattr(account_export, "_joined", observed)
    files = await files_of(live_client, clerk.headers(ADA))
    assert len(files["steps"]) == 1
    assert set(used) == {0}


@covers("me.export.stream")
async def test_export_counts_as_a_stream(client: httpx.AsyncClient, clerk: Clerk, ada: UserRecord) -> None:
    plan = get_plan("free")
    with ExitStack() as stack:
        for _ in range(plan.streams):
            stack.enter_context(app.state.stream_slots.take(ada.id, plan))
        refused = await client.get(EXPORT, headers=clerk.headers(ADA))
    assert (refused.status_code, refused.json()["code"]) == (403, "streams_limit_reached")


async def test_export_that_is_not_read_to_its_end_is_closed(
    client: httpx.AsyncClient, clerk: Clerk, ada: UserRecord
) -> None:
    """HEAD ends the response after its head."""
    before = app.state.stream_slots._open.total()
    response = await client.head(EXPORT, headers=clerk.headers(ADA))
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == "application/zip"
    assert app.state.stream_slots._open.total() == before
