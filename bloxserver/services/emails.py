"""Counts the emails that users send through the mail server of the installation."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.errors import LimitReached
from bloxserver.models.tables import EmailCountRecord
from bloxserver.models.upsert import insert_into
from bloxserver.queries.users import read_plan

HINT = "Send the rest tomorrow (UTC), use a mail server of your own (server in the config), or upgrade your plan."


async def count_emails(session: AsyncSession, user_id: UUID, number: int, moment: datetime) -> None:
    """Count `number` emails before they are sent. The count is exact: it is checked and changed by one statement.

    Raises `LimitReached` (`emails_per_day`), and then counts none of them.
    """
    limit = (await read_plan(session, user_id)).emails_per_day
    today = moment.date()
    counted = sa.case((EmailCountRecord.day == today, EmailCountRecord.emails), else_=0)
    if number <= limit:
        statement = (
            insert_into(session, EmailCountRecord)
            .values(user_id=user_id, day=today, emails=number)
            .on_conflict_do_update(
                index_elements=[EmailCountRecord.user_id],
                set_={"day": today, "emails": counted + number},
                where=counted + number <= limit,
            )
            .returning(EmailCountRecord.emails)
        )
        if (await session.execute(statement)).first() is not None:
            return
    used = await session.scalar(sa.select(counted).where(EmailCountRecord.user_id == user_id))
    raise LimitReached("emails_per_day", limit, used or 0, HINT)
