"""Executions that workers died with, time and again: one of them may be the reason, the others were beside it."""

from __future__ import annotations

from bloxserver.engine.queue.claims import ClaimedExecution
from bloxserver.engine.queue.values import LeaseKey
from bloxserver.models.tables import QUARANTINE_THRESHOLD


class Quarantine:
    """How many of them a worker has at once: one, and one more for each that did it no harm.

    So the reason dies alone in the end, and whatever was beside it is not given up with it. After a failure that had
    another reason it takes few rounds until all run again.
    """

    def __init__(self) -> None:
        self._held: set[LeaseKey] = set()
        self._harmless = 0

    @property
    def places(self) -> int:
        """How many more may be taken."""
        return max(0, 1 + self._harmless - len(self._held))

    def begin(self, execution: ClaimedExecution) -> None:
        if execution.crash_count >= QUARANTINE_THRESHOLD:
            self._held.add(execution.lease_key)

    def clear(self, execution: ClaimedExecution) -> None:
        """It got further than what workers died with, or has left this worker."""
        if execution.lease_key in self._held:
            self._held.remove(execution.lease_key)
            self._harmless += 1
