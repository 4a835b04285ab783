"""The executions that a transaction has changed, for those who watch them."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

CHANGES = "bloxserver_execution_changes"
"""The member of a session's `info` with the keys of its changes."""
KEY_CHARACTERS = 8
ANY = "*"
"""Stands for the keys of all executions."""


def change_key(execution_id: UUID) -> str:
    """Return a short name of an execution: the end of its id, which is random. Few executions share one."""
    return execution_id.hex[-KEY_CHARACTERS:]


def announce_changes(session: AsyncSession, execution_ids: Iterable[UUID]) -> None:
    """After the commit, tell those who watch these executions that the status or the steps have changed."""
    _add(session, map(change_key, execution_ids))


def announce_any_change(session: AsyncSession) -> None:
    """As `announce_changes`, for executions whose ids are not known."""
    _add(session, [ANY])


def _add(session: AsyncSession, keys: Iterable[str]) -> None:
    session.info[CHANGES] = session.info.get(CHANGES, frozenset()).union(keys)
