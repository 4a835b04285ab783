"""Which task is next to use one of a few slots: tenants take turns, and each has a share of the slots."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

Task = TypeVar("Task")


class FairQueue(Generic[Task]):
    """Waiting tasks by tenant. The tenant with the fewest running tasks is next; among equals, the tenants take turns.

    The last free slot is left for tenants without a running task. Not safe for threads: its user holds a lock.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._waiting: OrderedDict[Hashable, deque[tuple[Task, int]]] = OrderedDict()
        self._running: Counter[Hashable] = Counter()
        self._waiting_count = 0

    def __len__(self) -> int:
        """The number of waiting tasks."""
        return self._waiting_count

    def waiting(self, tenant: Hashable) -> int:
        return len(self._waiting.get(tenant, ()))

    def put(self, tenant: Hashable, task: Task, share: int) -> None:
        """Add a task of a tenant of whom `share` tasks may run at once, but at least one."""
        self._waiting.setdefault(tenant, deque()).append((task, share))
        self._waiting_count += 1

    def take(self) -> tuple[Hashable, Task] | None:
        """Remove and return the next task; None if no task may run now. Call `done` when it has ended."""
        tenant = self._next_tenant()
        if tenant is None:
            return None
        tasks = self._waiting[tenant]
        task, _ = tasks.popleft()
        self._waiting_count -= 1
        self._waiting.move_to_end(tenant)
        if not tasks:
            del self._waiting[tenant]
        self._running[tenant] += 1
        return tenant, task

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
                self._waiting_count -= 1
                if not tasks:
                    del self._waiting[tenant]
                return True
        return False

    def _next_tenant(self) -> Hashable | None:
        free = self._slots - self._running.total()
        best: Hashable | None = None
        fewest = 0
        for tenant, tasks in self._waiting.items() if free else ():
            running = self._running.get(tenant, 0)
            if running == 0:
                return tenant
            if free > 1 and running < tasks[0][1] and (best is None or running < fewest):
                best, fewest = tenant, running
        return best
