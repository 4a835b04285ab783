"""Notifications of changed executions, in the process and between processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import uuid4

import pytest
import sqlalchemy as sa

from bloxserver.api import watching
from bloxserver.api.shutdown import Shutdown
from bloxserver.api.watching import ExecutionWatcher, Watch
from bloxserver.engine.engine import Engine
from bloxserver.engine.live_texts import AgentText, Announce, LiveTexts
from bloxserver.engine.loops import cancel as cancel_tasks
from bloxserver.engine.queue import notify
from bloxserver.engine.queue.notify import MAX_KEYS, WATCHED_CHANNEL, ChangeListener, WakeNotifier
from bloxserver.models.database import Database
from bloxserver.models.enums import ExecutionStatus, TriggerType
from bloxserver.models.execution_changes import ANY, KEY_CHARACTERS, change_key
from bloxserver.models.tables import FlowRecord
from bloxserver.queries.progress import read_progress
from bloxserver.services.executions import Input, accept
from bloxserver.services.transitions import cancel_execution
from bloxserver.settings import Settings
from tests import factories
from tests.api.test_watching import Source, until_read


class Recorder:
    """Records what a process learns of changes."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.states: list[bool] = []
        self.texts: list[AgentText] = []
        self.announce: list[Announce] = []

    def changed(self, keys: frozenset[str]) -> None:
        self.keys |= keys

    def set_notified(self, is_notified: bool) -> None:
        self.states.append(is_notified)

    def hear(self, text: AgentText) -> None:
        self.texts.append(text)

    def on_watch(self, announce: Announce) -> Callable[[], None]:
        self.announce.append(announce)
        return lambda: self.announce.remove(announce)


async def until(is_reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while True:
            if is_reached():
                return
            await asyncio.sleep(0.01)


@pytest.fixture
async def elsewhere(live_settings: Settings, live_database: Database) -> AsyncIterator[Database]:
    """The database as another process uses it."""
    if live_settings.uses_sqlite:
        pytest.skip("SQLite is for one process")
    database = Database(live_settings)
    yield database
    await database.dispose()


@pytest.fixture
async def flow(live_database: Database) -> FlowRecord:
    async with live_database.sessions() as session:
        return await factories.create_flow(session, await factories.create_user(session))


@asynccontextmanager
async def running(
    settings: Settings, database: Database, watcher: ChangeListener | None, **kind: bool
) -> AsyncIterator[None]:
    """An engine, which does not run executions unless `run_worker` is true."""
    engine = Engine(settings, database, watcher=watcher, **({"run_worker": False} | kind))
    await engine.start()
    try:
        yield
    finally:
        await engine.stop()


async def cancel(database: Database, flow: FlowRecord) -> str:
    """Cancel a new execution. Returns its key."""
    async with database.sessions() as session:
        execution = await factories.create_execution(session, flow)
    async with database.transaction() as session:
        await cancel_execution(session, flow.user_id, flow.id, execution.id)
    return change_key(execution.id)


async def test_changes_of_a_process_reach_its_own_watcher(
    live_database: Database, live_settings: Settings, flow: FlowRecord
) -> None:
    recorder = Recorder()
    async with running(live_settings, live_database, recorder):
        await until(lambda: recorder.states[-1:] == [True])
        assert await cancel(live_database, flow) in recorder.keys
    assert recorder.states[-1] is False
    assert await cancel(live_database, flow) not in recorder.keys


async def test_changes_of_a_process_reach_the_watcher_of_another_one(
    live_database: Database, elsewhere: Database, live_settings: Settings, flow: FlowRecord
) -> None:
    recorder = Recorder()
    async with running(live_settings, elsewhere, recorder), running(live_settings, live_database, None):
        await until(lambda: recorder.states == [False, True])
        key = await cancel(live_database, flow)
        await until(lambda: key in recorder.keys)
    assert recorder.states[-1] is False


async def test_watcher_learns_that_the_connection_is_lost_and_restored(
    live_database: Database,
    elsewhere: Database,
    live_settings: Settings,
    flow: FlowRecord,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notify, "RECONNECT_SECONDS", 0.1)
    recorder = Recorder()
    async with running(live_settings, elsewhere, recorder), running(live_settings, live_database, None):
        await until(lambda: recorder.states == [False, True])
        async with live_database.transaction() as session:
            lost = await session.scalars(
                sa.text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE query LIKE 'LISTEN%bloxserver_changes%' AND datname = current_database()"
                )
            )
            assert lost.all() == [True]
        await until(lambda: recorder.states == [False, True, False, True])
        key = await cancel(live_database, flow)
        await until(lambda: key in recorder.keys)


async def test_long_messages_are_replaced_by_one_for_all_executions(
    live_database: Database, elsewhere: Database, live_settings: Settings
) -> None:
    recorder = Recorder()
    sender = WakeNotifier(live_settings, lambda work: None)
    receiver = WakeNotifier(live_settings, lambda work: None, recorder)
    tasks = [asyncio.create_task(each.run()) for each in (sender, receiver)]
    keys = [f"{number:0{KEY_CHARACTERS}x}" for number in range(MAX_KEYS + 1)]
    await until(lambda: recorder.states == [True])
    sender.notify_changes(frozenset(keys[1:]))
    await until(lambda: recorder.keys == {*keys[1:]})
    sender.notify_changes(frozenset(keys))
    await until(lambda: ANY in recorder.keys)
    assert keys[0] not in recorder.keys
    await cancel_tasks(tasks)


async def test_texts_reach_processes_that_watch_their_executions(
    live_settings: Settings, live_database: Database, elsewhere: Database
) -> None:
    texts, recorder = LiveTexts(), Recorder()
    worker = WakeNotifier(live_settings, lambda work: None, texts=texts)
    replica = WakeNotifier(live_settings, lambda work: None, recorder)
    tasks = [asyncio.create_task(each.run()) for each in (worker, replica)]
    await until(lambda: recorder.states == [True])
    watched, other = beginning(), beginning()
    with texts.written(watched) as text, texts.written(other) as unwatched:
        for each in (text, unwatched):
            each.add("So far. ")
        await until_listening(live_database, WATCHED_CHANNEL)
        replica.notify_watched(frozenset([change_key(watched.execution_id)]), is_new=True)
        await until(lambda: bool(recorder.texts))
        text.add("\0" + "\u2028" * 3_000)
    await until(lambda: sum(len(each.text) for each in recorder.texts) == 3_009)
    assert {(each.execution_id, each.step_id, each.listener) for each in recorder.texts} == {
        (watched.execution_id, watched.step_id, "a")
    }
    assert "".join(each.text for each in recorder.texts) == "So far. \ufffd" + "\u2028" * 3_000
    offsets = [sum(len(each.text) for each in recorder.texts[:number]) for number in range(len(recorder.texts))]
    assert [each.offset for each in recorder.texts] == offsets
    await cancel_tasks(tasks)


def beginning() -> AgentText:
    return AgentText(uuid4(), uuid4(), "a", 1, 1, 0, "")


async def until_listening(database: Database, channel: str) -> None:
    """Wait until a connection of this database has begun to listen."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE :query AND datname = current_database()"
    async with asyncio.timeout(20):
        while True:
            async with database.transaction(read_only=True) as session:
                if await session.scalar(sa.text(query), {"query": f"LISTEN%{channel}%"}):
                    return
            await asyncio.sleep(0.01)


async def test_stream_on_another_replica_learns_of_steps_and_of_the_end(
    live_database: Database,
    elsewhere: Database,
    live_settings: Settings,
    flow: FlowRecord,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By polling alone, it would learn of them after an hour."""
    monkeypatch.setattr(watching, "NOTIFIED_INTERVAL_SECONDS", 3600.0)
    watcher = ExecutionWatcher()
    async with running(live_settings, elsewhere, watcher):
        await until(lambda: watcher._is_notified)
        async with live_database.transaction() as session:
            accepted = await accept(session, flow_id=flow.id, given=Input("Ada"), trigger_type=TriggerType.MANUAL)
        stream = Watch(cast(Any, Source(elsewhere)), Shutdown(), accepted.id, with_steps=True)
        wait = Watch(cast(Any, Source(elsewhere)), Shutdown(), accepted.id)
        tasks = await until_read(watcher, [stream, wait])
        async with running(live_settings, live_database, None, run_worker=True), asyncio.timeout(20):
            assert await asyncio.gather(*tasks) == [True, True]
        async with elsewhere.transaction(read_only=True) as session:
            progress = (await read_progress(session, [accepted.id]))[accepted.id]
        assert (progress.status, progress.sequence) == (ExecutionStatus.SUCCESS, 1)
        for each in (stream, wait):
            await watcher.end(each)
