"""A requester for tests of queries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.tables import UserRecord


@dataclass
class RecordedRequester:
    """Records the users of the rows that confirm it: None for a user without a row."""

    id: UUID
    confirmed: list[UUID | None] = field(default_factory=list)

    async def confirm(self, session: AsyncSession, row: sa.Row[Any]) -> bool:
        self.confirmed.append(row.requester_id)
        return True


def requester(user: UserRecord) -> RecordedRequester:
    return RecordedRequester(user.id)
