"""Leases of the slots of providers. The slots of all processes together are at most `max_concurrent`.

Only a process itself takes slots from its lease, so that others can rely on what is stored. A lease that is not renewed
expires, because its process may have died.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.ids import new_id
from bloxserver.models.database import Database
from bloxserver.models.tables import LlmProviderLeaseRecord, LlmProviderRecord
from bloxserver.models.upsert import insert_into

LEASE = timedelta(seconds=15)
REMAINDER_SECONDS = 10
"""Slots that cannot be shared equally move to other processes after this time."""

Offer = Callable[[int], int]
"""Reduces what the process may use to at most this number of slots. Returns the slots that its lease needs: at least
those in use."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What a process may use of a provider."""

    slots: int
    can_grow: bool
    """Whether the process would get another slot if it had another call."""
    expires_at: datetime


def fair_shares(maximum: int, wanted: Mapping[UUID, int], turn: int) -> dict[UUID, int]:
    """Divide slots equally, but no process gets more than it wants. `turn` selects which ones get the remainder."""
    names = sorted(wanted)
    first = turn % len(names)
    names = names[first:] + names[:first]
    shares = dict.fromkeys(names, 0)
    unmet = [name for name in names if wanted[name]]
    while maximum and unmet:
        each = max(1, maximum // len(unmet))
        for name in unmet:
            given = min(each, wanted[name] - shares[name], maximum)
            shares[name] += given
            maximum -= given
        unmet = [name for name in unmet if shares[name] < wanted[name]]
    return shares


def share_of(own: UUID, maximum: int, wanted: Mapping[UUID, int], turn: int) -> int:
    """The slots for a process, given what all of them want.

    Slots that none wants are divided too, so that a burst of calls finds them. One part stays free for a process that
    begins.
    """
    if not wanted[own]:
        return 0
    shares = fair_shares(maximum, wanted, turn)
    return shares[own] + (maximum - sum(shares.values())) // (len(shares) + 1)


class ProviderLeases:
    """The leases of one process, in the database."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = now) -> None:
        self._database = database
        self._clock = clock
        self._holder = new_id()

    async def renew(self, provider: str, maximum: int, wanted: int, offer: Offer) -> Lease:
        """Renew the lease with the slots that the process gets now. With `wanted` 0, give back those not in use.

        `offer` is called before the lease is stored. Slots may be added after this method has returned.
        """
        moment = self._clock()
        expires_at = moment + LEASE
        async with self._database.transaction() as session:
            await _lock(session, provider)
            others = await self._others(session, provider, moment)
            all_wanted = {row.holder: row.wanted for row in others} | {self._holder: wanted}
            free = max(0, maximum - sum(row.slots for row in others))
            turn = int(moment.timestamp()) // REMAINDER_SECONDS
            slots = min(free, share_of(self._holder, maximum, all_wanted, turn))
            more = min(free, share_of(self._holder, maximum, all_wanted | {self._holder: wanted + 1}, turn))
            await self._store(session, provider, offer(slots), wanted, expires_at)
        return Lease(slots, more > slots, expires_at)

    async def _others(self, session: AsyncSession, provider: str, moment: datetime) -> Sequence[Any]:
        """Return the valid leases of other processes, and delete those that have expired."""
        record = LlmProviderLeaseRecord
        rows = (
            await session.execute(
                sa.select(record.holder, record.slots, record.wanted, record.expires_at).where(
                    record.provider == provider, record.holder != self._holder
                )
            )
        ).all()
        if any(row.expires_at <= moment for row in rows):
            await session.execute(
                sa.delete(record)
                .where(record.provider == provider, record.holder != self._holder, record.expires_at <= moment)
                .execution_options(synchronize_session=False)
            )
        return [row for row in rows if row.expires_at > moment]

    async def _store(self, session: AsyncSession, provider: str, slots: int, wanted: int, expires_at: datetime) -> None:
        record = LlmProviderLeaseRecord
        if not slots and not wanted:
            await session.execute(
                sa.delete(record)
                .where(record.provider == provider, record.holder == self._holder)
                .execution_options(synchronize_session=False)
            )
            return
        values = {"slots": slots, "wanted": wanted, "expires_at": expires_at}
        await session.execute(
            insert_into(session, record)
            .values(provider=provider, holder=self._holder, **values)
            .on_conflict_do_update(index_elements=[record.provider, record.holder], set_=values)
        )

    async def give_back(self) -> None:
        """Delete all leases of the process."""
        record = LlmProviderLeaseRecord
        async with self._database.transaction(single_statement=True) as session:
            await session.execute(
                sa.delete(record).where(record.holder == self._holder).execution_options(synchronize_session=False)
            )


async def _lock(session: AsyncSession, provider: str) -> None:
    """Lock the leases of a provider until the transaction ends."""
    record = LlmProviderRecord
    locked = sa.select(record.name).where(record.name == provider).with_for_update()
    if await session.scalar(locked) is None:
        await session.execute(
            insert_into(session, record).values(name=provider).on_conflict_do_nothing(index_elements=[record.name])
        )
        await session.scalar(locked)
