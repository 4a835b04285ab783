"""Executions that workers died with, time and again: one of them may be the reason, the others were beside it."""

from __future__ import annotations

from bloxserver.api.models.tables import MANY_TAKEOVERS
from bloxserver.services.claims import Hold, TakenExecution


class Suspects:
    """How many of them a worker has at once: one, and one more for each that did it no harm.

    So the reason dies alone in the end, and whatever was beside it is not given up with it. After a failure that had
    another reason it takes few rounds until all run again.
    """

    def __init__(self) -> None:
        self._held: set[Hold] = set()
        self._harmless = 0

    @property
    def places(self) -> int:
        """How many more may be taken."""
        return max(0, 1 + self._harmless - len(self._held))

    def begin(self, execution: TakenExecution) -> None:
        if execution.takeovers >= MANY_TAKEOVERS:
            self._held.add(execution.hold)

    def clear(self, execution: TakenExecution) -> None:
        """It got further than what workers died with, or has left this worker."""
        if execution.hold in self._held:
            self._held.remove(execution.hold)
            self._harmless += 1
