"""A process that accepts runs, one that reports usage, or one that samples storage. Tests kill them.

Usage: `python -m tests.billing.metering_process accept|report|sample URL_OF_THE_DATABASE URL_OF_STRIPE`.
"""

from __future__ import annotations

import asyncio
import random
import sys
from datetime import timedelta

import sqlalchemy as sa
from pydantic import SecretStr

from bloxserver.billing.client import get_stripe
from bloxserver.billing.storage import sample_storage
from bloxserver.clock import now
from bloxserver.engine.background.metering import Metering
from bloxserver.engine.retry import retry_transaction
from bloxserver.models.database import Database
from bloxserver.models.tables import FlowRecord, UserRecord
from bloxserver.queries.usage import period_at
from bloxserver.services.accepted_runs import AcceptedRun, insert_runs
from bloxserver.settings import Settings
from tests.billing.metering_world import SECRET_KEY
from tests.services.test_accepted_runs import execution_of

DAYS = 30
"""Days on which storage is sampled, until today."""
MAX_BATCH = 6
INTERVAL_SECONDS = 0.05


async def accept(database: Database) -> None:
    """Accept runs until killed, several in a transaction, as webhooks are accepted."""
    user = UserRecord
    rows = sa.select(FlowRecord.id, user.id, user.current_period_start, user.current_period_end).join(
        user, user.id == FlowRecord.user_id
    )
    while True:
        async with database.transaction(read_only=True) as session:
            flows = (await session.execute(rows)).all()
        chosen = random.choices(flows, k=random.randint(1, MAX_BATCH))  # noqa: S311
        runs = [
            AcceptedRun(execution_of(flow_id), user_id, period_at(now(), start, end))
            for flow_id, user_id, start, end in chosen
        ]
        await retry_transaction(database, lambda session, runs=runs: insert_runs(session, runs))  # type: ignore[misc]


async def sample(database: Database) -> None:
    """Sample the days of a month one after the other until killed, as if each were today."""
    while True:
        for days_ago in reversed(range(DAYS)):
            moment = now() - timedelta(days=days_ago)
            await retry_transaction(database, lambda session, moment=moment: sample_storage(session, moment))  # type: ignore[misc]
            await asyncio.sleep(INTERVAL_SECONDS)


async def main(mode: str, database_url: str, stripe_url: str) -> None:
    settings = Settings(database_url=database_url, stripe_secret_key=SecretStr(SECRET_KEY), stripe_api_base=stripe_url)
    database, stripe = Database(settings), get_stripe(settings)
    assert stripe is not None
    if mode == "report":
        await Metering(database, stripe, interval_seconds=INTERVAL_SECONDS).run()
    await (sample if mode == "sample" else accept)(database)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
