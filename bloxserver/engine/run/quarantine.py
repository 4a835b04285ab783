"""Quarantine of executions with many consecutive crashes, one of which may have crashed the worker of all."""

from __future__ import annotations

from bloxserver.engine.queue.claims import ClaimedExecution
from bloxserver.engine.queue.values import LeaseKey
from bloxserver.models.tables import QUARANTINE_THRESHOLD


class Quarantine:
    """Limits how many quarantined executions a worker runs at once: one, and one more for each that has made progress.

    The execution that causes the crashes eventually runs alone, so the others do not fail with it. After crashes with
    another cause, all of them run again after few rounds.
    """

    def __init__(self) -> None:
        self._running: set[LeaseKey] = set()
        self._harmless = 0

    @property
    def slots(self) -> int:
        """How many more quarantined executions may be claimed."""
        return max(0, 1 + self._harmless - len(self._running))

    def begin(self, execution: ClaimedExecution) -> None:
        """Count the execution if it is quarantined."""
        if execution.crash_count >= QUARANTINE_THRESHOLD:
            self._running.add(execution.lease_key)

    def clear(self, execution: ClaimedExecution) -> None:
        """Remove the execution, because it has made progress or no longer runs on this worker."""
        if execution.lease_key in self._running:
            self._running.remove(execution.lease_key)
            self._harmless += 1
