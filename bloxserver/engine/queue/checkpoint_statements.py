"""The statements that write checkpoints. They are cached: building one takes longer than executing it.

On PostgreSQL, each writes any number of rows, so that the triggers run once. Its parameters are arrays.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import sqlalchemy as sa

from bloxserver.models.array_rows import array_rows
from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.tables import ExecutionRecord, ExecutionStepRecord
from bloxserver.models.upsert import insert_on
from bloxserver.services.transitions import success_of

_executions, _steps = (kind.metadata.tables[kind.__tablename__] for kind in (ExecutionRecord, ExecutionStepRecord))
STEP_COLUMNS = tuple(name for name in _steps.c.keys() if name != "copied")  # noqa: SIM118
"""The columns that checkpoints write. Only retries set `copied`."""
CHANGING = (
    "sequence",
    "status",
    "attempt",
    "interruptions",
    "output_payload",
    "error_message",
    "error_code",
    "completed_at",
    "duration_ms",
    "input_tokens",
    "output_tokens",
    "routed_to",
    "called_id",
    "warnings",
    "state",
)
"""The columns of a step that change while its message is handled."""
LEASE_COLUMNS = ("id", "lease")
END_COLUMNS = ("id", "output", "filtered")


@cache
def save_group(*, skip_locked: bool) -> sa.Executable:
    """Lock leases, and write the steps and the successes of those that are valid. Returns their executions' ids.

    For PostgreSQL. The parameters are the rows `lease`, `step` and `ended`, see `array_rows`, and `moment`. With
    `skip_locked`, leases whose rows other transactions have locked are left out. Every transaction that waits for the
    locks of several executions locks them in the order of their ids.
    """
    kinds = {name: _executions.c[name].type for name in LEASE_COLUMNS}
    leases = array_rows("lease", kinds)
    locked = (
        sa.select(_executions.c.id)
        .join(leases, sa.and_(leases.c.id == _executions.c.id, leases.c.lease == _executions.c.lease))
        .where(_executions.c.status == ExecutionStatus.RUNNING)
        .order_by(_executions.c.id)
        .with_for_update(key_share=True, skip_locked=skip_locked, of=_executions)
        .cte("locked")
    )
    valid = sa.select(locked.c.id)
    steps = _step_rows()
    row = _executions.c
    ended = array_rows("ended", {"id": row.id.type, "output": row.output_payload.type, "filtered": row.filtered.type})
    return valid.add_cte(
        _upsert("postgresql", sa.select(*steps.c).where(steps.c.execution_id.in_(valid))).cte("saved"),
        success_of(ended.c.output, ended.c.filtered)
        .where(_executions.c.id == ended.c.id, ended.c.id.in_(valid))
        .cte("succeeded"),
    )


@cache
def save_steps_of(dialect: str) -> sa.Executable:
    """Insert or update steps. The parameters are the rows `step` on PostgreSQL, and one row on SQLite."""
    statement: sa.Executable = _upsert(dialect, sa.select(*_step_rows().c) if dialect == "postgresql" else None)
    return statement


@cache
def save_success() -> sa.Executable:
    """End an execution as a success. For SQLite; the parameters are one row `ended`, and `moment`."""
    output = sa.bindparam("ended_output", type_=_executions.c.output_payload.type)
    filtered = sa.bindparam("ended_filtered", type_=_executions.c.filtered.type)
    return success_of(output, filtered).where(_executions.c.id == sa.bindparam("ended_id", type_=_executions.c.id.type))


def _step_rows() -> sa.TableValuedAlias:
    return array_rows("step", {name: _steps.c[name].type for name in STEP_COLUMNS})


def _upsert(dialect: str, rows: sa.Select[Any] | None) -> Any:
    """A step may exist: it continues, or it is the same because the answer to an earlier commit was lost."""
    statement: Any = insert_on(dialect, _steps)
    if rows is not None:
        statement = statement.from_select(STEP_COLUMNS, rows, include_defaults=False)
    new = statement.excluded
    changes: dict[str, Any] = {name: new[name] for name in CHANGING}
    changes["input_payload"] = sa.func.coalesce(new.input_payload, _steps.c.input_payload)
    # A save that was cancelled may take effect late, after newer ones.
    newer = new.sequence >= _steps.c.sequence
    return statement.on_conflict_do_update(index_elements=["execution_id", "key"], set_=changes, where=newer)
