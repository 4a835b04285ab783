"""Which task is next to use one of a few slots: tenants share the time, and each has a share of the slots."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Task = TypeVar("Task")


class FairQueue(Generic[Task]):
    """Waiting tasks by tenant. The tenant with the fewest running tasks is next.

    Among equals, it is the tenant that has used the least time, so that short tasks do not wait for many long ones.
    The last free slot is left for tenants without a running task. Not safe for threads: its user holds a lock.
    """

    def __init__(self, slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self._slots = slots
        self._clock = clock
        self._waiting: OrderedDict[Hashable, deque[tuple[Task, int]]] = OrderedDict()
        self._running: Counter[Hashable] = Counter()
        self._waiting_count = 0
        self._used: dict[Hashable, float] = {}
        """Seconds in slots, by tenant."""
        self._fair_share = 0.0
        """The seconds of a tenant that always had a task: the virtual time of weighted fair queueing."""
        self._counted_at = clock()

    def __len__(self) -> int:
        """The number of waiting tasks."""
        return self._waiting_count

    def waiting(self, tenant: Hashable) -> int:
        return len(self._waiting.get(tenant, ()))

    def put(self, tenant: Hashable, task: Task, share: int) -> None:
        """Add a task of a tenant of whom `share` tasks may run at once, but at least one."""
        self._count_time()
        self._waiting.setdefault(tenant, deque()).append((task, share))
        self._waiting_count += 1

    def excess(self, tenant: Hashable) -> float:
        """Return the seconds that the tenant has used in addition to its fair share."""
        self._count_time()
        return self._used_by(tenant) - self._fair_share

    def next_tenant(self) -> Hashable | None:
        """Return the tenant of the next task; None if no task may run now."""
        self._count_time()
        free = self._slots - self._running.total()
        best: Hashable | None = None
        least = (0, 0.0)
        for tenant, tasks in self._waiting.items() if free else ():
            running = self._running.get(tenant, 0)
            if running == 0 or (free > 1 and running < tasks[0][1]):
                use = running, self._used_by(tenant)
                if best is None or use < least:
                    best, least = tenant, use
        return best

    def take(self) -> tuple[Hashable, Task] | None:
        """Remove and return the next task; None if no task may run now. Call `done` when it has ended."""
        tenant = self.next_tenant()
        if tenant is None:
            return None
        tasks = self._waiting[tenant]
        task, _ = tasks.popleft()
        self._waiting_count -= 1
        self._waiting.move_to_end(tenant)
        if not tasks:
            del self._waiting[tenant]
        self._running[tenant] += 1
        self._used[tenant] = self._used_by(tenant)
        return tenant, task

    def done(self, tenant: Hashable) -> None:
        """A task of this tenant has ended."""
        self._count_time()
        self._running[tenant] -= 1
        if not self._running[tenant]:
            del self._running[tenant]
        self._forget_idle_tenants()

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

    def _used_by(self, tenant: Hashable) -> float:
        # Time in which a tenant had no task, or waited, is not saved up: later, others would wait for all of it.
        return max(self._used.get(tenant, 0.0), self._fair_share)

    def _count_time(self) -> None:
        """Count the time since the last call for the tenants whose tasks ran."""
        now = self._clock()
        seconds, self._counted_at = now - self._counted_at, now
        if self._running:
            tenants = len(self._waiting) + sum(tenant not in self._waiting for tenant in self._running)
            self._fair_share += seconds * self._running.total() / tenants
            for tenant, number in self._running.items():
                self._used[tenant] += seconds * number

    def _forget_idle_tenants(self) -> None:
        if len(self._used) > 2 * (len(self._waiting) + len(self._running)) + 100:
            self._used = {
                tenant: used
                for tenant, used in self._used.items()
                if used > self._fair_share or tenant in self._running
            }
