"""The executions that committed transactions change."""

from __future__ import annotations

from uuid import UUID, uuid4

import sqlalchemy as sa

from bloxserver.ids import new_id
from bloxserver.models.database import Database
from bloxserver.models.execution_changes import (
    ANY,
    KEY_CHARACTERS,
    announce_any_change,
    announce_changes,
    change_key,
)


def test_key_is_the_random_end_of_an_id() -> None:
    assert change_key(UUID("01a20dff-e305-777b-be9d-81bde9508178")) == "e9508178"
    assert len({change_key(new_id()) for _ in range(100)}) == 100
    assert len(change_key(new_id())) == KEY_CHARACTERS


async def test_listener_gets_the_keys_after_the_commit(live_database: Database) -> None:
    found: list[frozenset[str]] = []
    unlisten = live_database.on_execution_change(found.append)
    first, second = uuid4(), uuid4()
    async with live_database.transaction() as session:
        async with session.begin_nested():
            announce_changes(session, [first])
        await session.execute(sa.text("SELECT 1"))
        announce_changes(session, [second])
        assert found == []
    assert found == [{change_key(first), change_key(second)}]
    async with live_database.transaction() as session:
        await session.execute(sa.text("SELECT 1"))
        announce_any_change(session)
    assert found[1:] == [{ANY}]
    unlisten()
    async with live_database.transaction() as session:
        await session.execute(sa.text("SELECT 1"))
        announce_any_change(session)
    assert len(found) == 2


async def test_changes_that_are_rolled_back_are_not_announced(live_database: Database) -> None:
    found: list[frozenset[str]] = []
    unlisten = live_database.on_execution_change(found.append)
    async with live_database.sessions() as session:
        await session.execute(sa.text("SELECT 1"))
        announce_changes(session, [uuid4()])
        await session.rollback()
    assert found == []
    unlisten()
