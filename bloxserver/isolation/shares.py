"""Which task runs next: tenants take turns, and each has a share of the processes."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

Task = TypeVar("Task")


class FairQueue(Generic[Task]):
    """Waiting tasks by tenant. The tenant with the fewest running tasks is next; among equals, the tenants take turns.

    Not safe for threads: its user holds a lock.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._waiting: OrderedDict[Hashable, deque[tuple[Task, int]]] = OrderedDict()
        self._running: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        """The number of waiting tasks."""
        return sum(map(len, self._waiting.values()))

    def waiting(self, tenant: Hashable) -> int:
        return len(self._waiting.get(tenant, ()))

    def put(self, tenant: Hashable, task: Task, share: int) -> None:
        """Add a task of a tenant of whom `share` tasks may run at once. One process is always left for others."""
        allowed = max(1, min(share, self._slots - 1))
        self._waiting.setdefault(tenant, deque()).append((task, allowed))

    def take(self) -> tuple[Hashable, Task] | None:
        """Remove and return the next task; None if no task may run now. Call `done` when it has ended."""
        best: Hashable = None
        fewest: int | None = None
        for tenant, tasks in self._waiting.items():
            running = self._running.get(tenant, 0)
            if running < tasks[0][1] and (fewest is None or running < fewest):
                best, fewest = tenant, running
                if running == 0:
                    break
        if fewest is None:
            return None
        tasks = self._waiting[best]
        task, _ = tasks.popleft()
        self._waiting.move_to_end(best)
        if not tasks:
            del self._waiting[best]
        self._running[best] += 1
        return best, task

    def done(self, tenant: Hashable) -> None:
        """A task of this tenant has ended."""
        self._running[tenant] -= 1
        if not self._running[tenant]:
            del self._running[tenant]

    def remove(self, tenant: Hashable, task: Task) -> bool:
        """Remove a waiting task. Return whether it was waiting."""
        tasks = self._waiting.get(tenant, deque())
        for each in tasks:
            if each[0] is task:
                tasks.remove(each)
                if not tasks:
                    del self._waiting[tenant]
                return True
        return False
