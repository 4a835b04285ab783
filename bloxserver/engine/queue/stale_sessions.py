"""Database sessions that nobody will end any more."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.postgres import APPLICATION_NAME

# A process that is frozen, or cut off, between two messages of one statement is `active` to the server, whose own time
# limits pass it over: it waits for the client, and neither a statement nor an idle transaction.
_STALE = sa.text("""
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND usename = current_user AND application_name = :application
AND xact_start IS NOT NULL AND wait_event = 'ClientRead' AND pid <> pg_backend_pid()
AND state_change < clock_timestamp() - CAST(:silence AS interval)
""").bindparams(sa.bindparam("silence", type_=sa.Interval()))


async def terminate_stale_sessions(session: AsyncSession, silence: timedelta) -> int:
    """End sessions of ours that have kept a transaction, with its locks, waiting for so long; returns how many.

    On PostgreSQL. None of our transactions waits for anything but the database.
    """
    ended: int = (await session.execute(_STALE, {"application": APPLICATION_NAME, "silence": silence})).scalar_one()
    return ended
