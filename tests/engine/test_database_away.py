"""What the log says while the database is away."""

from __future__ import annotations

import asyncio

from structlog.testing import capture_logs
from structlog.typing import EventDict, WrappedLogger

from bloxserver.engine.background.sweeper import Sweeper
from bloxserver.models.database import Database
from bloxserver.settings import Settings


async def test_it_is_one_line_for_each_try() -> None:
    settings = Settings(database_url="postgresql+asyncpg://user@127.0.0.1:1/x", poll_interval_seconds=0.05)
    database = Database(settings)
    tries: asyncio.Queue[object] = asyncio.Queue()

    def note(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        tries.put_nowait((event["event"], event["error"], event["exc_info"]))
        return event

    with capture_logs(processors=[note]):
        sweeper = asyncio.create_task(Sweeper(settings, database).run())
        async with asyncio.timeout(10):
            told = [await tries.get() for _ in range(2)]
        sweeper.cancel()
        await asyncio.gather(sweeper, return_exceptions=True)
    await database.dispose()
    assert told == [("sweep failed", "ConnectionRefusedError", None)] * 2
