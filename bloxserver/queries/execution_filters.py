"""Filters of lists of executions, as conditions of statements that are built once for each set of filters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from bloxserver.models.enums import ExecutionStatus, TriggerType
from bloxserver.models.tables import ExecutionRecord, TriggerRecord
from bloxserver.models.types import UtcDateTime

SEARCHED = 10_000
"""The number of executions whose error messages a search reads: the newest that match the other filters."""

_executions, _triggers = ExecutionRecord.__table__.c, TriggerRecord.__table__.c


@dataclass(frozen=True)
class ExecutionFilter:
    """Which executions a list contains. A filter that is empty or None is not applied.

    Equal filters have equal texts, which are part of cursors.
    """

    statuses: tuple[ExecutionStatus, ...] = ()
    trigger_types: tuple[TriggerType, ...] = ()
    flow_ids: tuple[UUID, ...] = ()
    trigger_id: UUID | None = None
    started_after: datetime | None = None
    """The earliest `started_at`."""
    started_before: datetime | None = None
    """The first `started_at` that is too late."""
    min_duration_ms: int | None = None
    has_error: bool | None = None
    """Whether there is an error message."""
    error_text: str | None = None
    """A part of the error message."""
    filtered: bool | None = field(default=None, repr=False)
    """Whether no condition chose a listener for any of its outputs."""

    def __str__(self) -> str:
        # Cursors of lists without this filter are older than it, and remain valid.
        return repr(self) if self.filtered is None else f"{self!r} filtered={self.filtered}"

    @cached_property
    def shape(self) -> FilterShape:
        names = [each.name for each in fields(self) if getattr(self, each.name) not in (None, ())]
        if self.has_error is not None:
            names[names.index("has_error")] = "with_error" if self.has_error else "without_error"
        if self.filtered is False:
            names[names.index("filtered")] = "not_filtered"
        return FilterShape(self.statuses, frozenset(names) - {"statuses"})

    def parameters(self) -> dict[str, Any]:
        """The values for the statements of this filter's shape."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        del values["statuses"], values["has_error"], values["filtered"]
        return values


class FilterShape(NamedTuple):
    """Filters of the same shape have the same statement: their statuses are equal, the others differ in values."""

    statuses: tuple[ExecutionStatus, ...]
    names: frozenset[str]
    """The other filters."""

    @property
    def has_maintained_total(self) -> bool:
        """Whether the database maintains the number of executions that match."""
        return self.names <= {"flow_ids"}

    @property
    def is_search(self) -> bool:
        return "error_text" in self.names

    def conditions(self) -> Iterator[sa.ColumnElement[bool]]:
        """The conditions for executions, except those for the flow, the status and the error text."""
        return (_CONDITIONS[name] for name in sorted(self.names & _CONDITIONS.keys()))


def _time(name: str) -> sa.BindParameter[datetime]:
    return sa.bindparam(name, type_=UtcDateTime())


_existing_trigger = sa.select(_triggers.id).where(
    _triggers.id == sa.bindparam("trigger_id", type_=_triggers.id.type), _triggers.deleted_at.is_(None)
)
_CONDITIONS: dict[str, sa.ColumnElement[bool]] = {
    "trigger_types": _executions.trigger_type.in_(sa.bindparam("trigger_types", expanding=True)),
    "trigger_id": _executions.trigger_id == _existing_trigger.scalar_subquery(),
    "started_after": _executions.started_at >= _time("started_after"),
    "started_before": _executions.started_at < _time("started_before"),
    "min_duration_ms": _executions.duration_ms >= sa.bindparam("min_duration_ms", type_=sa.BigInteger),
    "with_error": _executions.error_message.is_not(None),
    "without_error": _executions.error_message.is_(None),
    "filtered": _executions.filtered,
    "not_filtered": sa.not_(_executions.filtered),
}
