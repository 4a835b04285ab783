"""Budgets for the memory of the values of executions: bodies of responses while they are read, and large answers."""

from __future__ import annotations

from typing import Self
from uuid import UUID
from weakref import WeakValueDictionary

from bloxserver.plans import MEBIBYTE, Plan


class MemoryLimitReached(Exception):
    """A budget is too small. The message has the limit, the memory in use and what to do."""


class MemoryBudget:
    """The memory that the values of an execution, of one of its attempts or of a user may take, in bytes.

    What is reserved here is also reserved in `parent`.
    """

    def __init__(self, limit: float = float("inf"), parent: MemoryBudget | None = None, *, of: str = "") -> None:
        """`of` completes the sentence "the memory limit of …"."""
        self._limit = limit
        self._parent = parent
        self._of = of
        self.used = 0

    def child(self) -> Self:
        """Return a budget for a part of the values. Closing it releases them."""
        return type(self)(parent=self)

    def reserve(self, size: int) -> None:
        """Charge `size` bytes. Raises `MemoryLimitReached`, and then charges nothing."""
        if self.used + size > self._limit:
            raise MemoryLimitReached(
                f"the memory limit of {self._of}, {_mebibytes(self._limit)}, is reached: {_mebibytes(self.used)} in "
                f"use, {_mebibytes(size)} more needed. Process less data at once, or change to a plan with a higher "
                "limit"
            )
        if self._parent is not None:
            self._parent.reserve(size)
        self.used += size

    def close(self) -> None:
        """Release all that is reserved here."""
        self._release(self.used)

    def _release(self, size: int) -> None:
        self.used -= size
        if self._parent is not None:
            self._parent._release(size)


class UserMemory:
    """The memory budgets of all users of a worker."""

    def __init__(self) -> None:
        # An entry exists while an execution of the user has a budget.
        self._by_user: WeakValueDictionary[UUID, MemoryBudget] = WeakValueDictionary()

    def of_execution(self, user_id: UUID, plan: Plan) -> MemoryBudget:
        """Return the budget of one execution, which is part of its user's budget."""
        total = MemoryBudget(plan.worker_memory_bytes, of="all your executions on one worker")
        return MemoryBudget(plan.execution_memory_bytes, self._by_user.setdefault(user_id, total), of="an execution")


def _mebibytes(size: float) -> str:
    return f"{size / MEBIBYTE:.1f} MiB"
