"""A requester for tests of queries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from bloxserver.models.tables import UserRecord


@dataclass
class RecordedRequester:
    """Records the users of the rows that confirm it: None for a user without a row."""

    id: UUID
    confirmed: list[UUID | None] = field(default_factory=list)

    def confirm(self, row: sa.Row[Any]) -> bool:
        self.confirmed.append(row.requester_id)
        return True

    async def read(self) -> None:
        raise AssertionError("every row is confirmed")


def requester(user: UserRecord) -> RecordedRequester:
    return RecordedRequester(user.id)
