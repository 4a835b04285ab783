"""The results of called executions, and calls of URLs, for executions that run on this worker and wait for them.

A suspended caller is resumed by the transaction that ends the called execution, or that accepts the call. A caller that
still runs other branches gets the result from here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol
from uuid import UUID

from bloxserver.engine.loops import PollLoop
from bloxserver.engine.queue.claims import read_call_results
from bloxserver.engine.queue.values import CalledResult
from bloxserver.models.database import Database
from bloxserver.queries.resumptions import read_resumed

MIN_INTERVAL_SECONDS = 0.02
"""Minimum time between two reads. On a busy worker, one statement reads all calls that ended in this time."""
POLL_SECONDS = 1.0
"""Time between two reads if no wake-up arrives, for example because NOTIFY failed."""


class Caller(Protocol):
    """A run of an execution that may wait for called executions and for calls, such as a `Pump`."""

    @property
    def pending_calls(self) -> frozenset[UUID]:
        """The called executions that it waits for."""

    def resolve_calls(self, results: Mapping[UUID, CalledResult | None]) -> None:
        """Continue with these results; None means that the called execution was deleted."""

    @property
    def waits(self) -> Waits:
        """Its waits for calls of URLs."""


class Waits(Protocol):
    """The waits of a run for calls of its URLs, such as `OpenWaits`."""

    @property
    def listeners(self) -> frozenset[str]:
        """The listeners that wait."""

    def resolve(self, listeners: Collection[str]) -> None:
        """Continue the steps of these listeners, whose URLs were called."""


class CallResults:
    """Reads the called executions of all callers together; reads nothing while no caller waits."""

    def __init__(self, database: Database, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._database = database
        self._poll_seconds = poll_seconds
        self._callers: dict[Caller, UUID] = {}
        self._loop = PollLoop(
            self._poll,
            failure="reading the results of called executions failed",
            retry_seconds=poll_seconds,
            first_pause_seconds=poll_seconds,
            min_interval_seconds=MIN_INTERVAL_SECONDS,
        )

    def wake(self) -> None:
        """Read the results soon; to be called on the event loop."""
        if self._callers:
            self._loop.wake()

    async def run(self) -> None:
        """Pass results to callers until cancelled."""
        await self._loop.run()

    @contextmanager
    def passed_to(self, caller: Caller, execution_id: UUID) -> Iterator[None]:
        """Pass results to the run of this execution until the end of the block."""
        self._callers[caller] = execution_id
        try:
            yield
        finally:
            del self._callers[caller]

    async def _poll(self) -> float:
        pending = {caller: calls for caller in self._callers if (calls := caller.pending_calls)}
        if pending:
            async with self._database.transaction(read_only=True) as session:
                found = await read_call_results(session, set().union(*pending.values()))
            for caller, calls in pending.items():
                if (parent_id := self._callers.get(caller)) is not None:
                    caller.resolve_calls({called_id: found.get((parent_id, called_id)) for called_id in calls})
        waiting = {execution_id: caller for caller, execution_id in self._callers.items() if caller.waits.listeners}
        if waiting:
            async with self._database.transaction(read_only=True) as session:
                received = await read_resumed(session, waiting)
            for execution_id, listeners in received.items():
                waiting[execution_id].waits.resolve(listeners)
        return self._poll_seconds
