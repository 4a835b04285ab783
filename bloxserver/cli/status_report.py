"""The report of `bloxserver status`, as lines of text or as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from bloxserver import __version__
from bloxserver.models.database import Database
from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.migrate import SchemaState, schema_state
from bloxserver.queries.limits import LimitState, read_limits
from bloxserver.queries.overview import Overview, read_overview
from bloxserver.settings import Settings

READABLE_STATES = (SchemaState.CURRENT, SchemaState.NEWER)


@dataclass(frozen=True)
class Status:
    """The state of the installation."""

    backend: str
    schema: SchemaState
    overview: Overview | None
    """None if this version cannot read the schema."""
    limits: Sequence[LimitState] = ()

    @property
    def problems(self) -> list[str]:
        """Problems that the operator must solve."""
        if self.overview is None:
            return [f"the database's schema is {self.schema.value}: run `bloxserver migrate`"]
        # Running executions count too: their workers are dead, and no worker recovers them.
        waiting = sum(queue.waiting + queue.running for queue in self.overview.queue.values())
        if waiting and not self.overview.workers:
            return [f"no live workers; {waiting} executions waiting"]
        return []


async def read_status(settings: Settings, database: Database) -> Status:
    """Read the state in one transaction. Raises the exceptions of SQLAlchemy."""
    async with database.transaction(read_only=True) as session:
        connection = await session.connection()
        schema = await connection.run_sync(schema_state)
        if schema not in READABLE_STATES:
            return Status(connection.dialect.name, schema, None)
        overview = await read_overview(session, timedelta(seconds=settings.heartbeat_timeout_seconds))
        return Status(connection.dialect.name, schema, overview, await read_limits(session, overview.moment))


def format_lines(status: Status) -> Iterator[str]:
    """Yield the report as lines of text."""
    yield f"bloxserver {__version__}"
    yield f"database   {status.backend}, schema {status.schema.value}"
    if status.overview is not None:
        yield from _format_overview(status.overview)
        yield from _format_limits(status.limits)
    for problem in status.problems:
        yield f"problem    {problem}"


def _format_overview(overview: Overview) -> Iterator[str]:
    yield f"workers    {len(overview.workers)} alive"
    for worker in overview.workers:
        yield (
            f"  {worker.name}  version {worker.version or 'unknown'}  since {worker.started_at:%Y-%m-%d %H:%M:%S} UTC"
            f"  last heartbeat {_format_duration(worker.silence)} ago  running {overview.taken.get(worker.name, 0)}"
        )
    yield f"{'queue':<18} {'waiting':>8} {'running':>8} {'suspended':>9}  oldest"
    for tier, queue in overview.queue.items():
        oldest = "-" if queue.due_since is None else _format_duration(overview.moment - queue.due_since)
        yield f"  {tier.value:<16} {queue.waiting:>8} {queue.running:>8} {queue.suspended:>9}  {oldest}"
    yield f"ended      {', '.join(f'{number} {name}' for name, number in _ended(overview).items())} in the last hour"
    schedules = overview.schedules
    late = (
        ""
        if schedules.due_since is None
        else f", the oldest {_format_duration(overview.moment - schedules.due_since)} late"
    )
    yield f"schedules  {schedules.armed} armed, {schedules.due} due{late}"


def _format_limits(limits: Sequence[LimitState]) -> Iterator[str]:
    yield f"{'limits':<18} {'at limit':>9} {'near it':>8}"
    for state in limits:
        yield f"  {state.name:<17} {state.at:>8} {state.near:>8}"
        for user in state.users:
            yield f"    {user.clerk_id} ({user.tier})  {user.used} of {user.limit}"


def to_json(status: Status) -> dict[str, Any]:
    """Return the report as a JSON object."""
    overview = {} if status.overview is None else _overview_to_json(status.overview)
    database = {"backend": status.backend, "schema": status.schema.value}
    limits = {} if status.overview is None else {"limits": [_limit_to_json(state) for state in status.limits]}
    return {"version": __version__, "database": database, **overview, **limits, "problems": status.problems}


def _limit_to_json(state: LimitState) -> dict[str, Any]:
    users = [
        {"clerkId": user.clerk_id, "tier": user.tier, "used": user.used, "limit": user.limit} for user in state.users
    ]
    return {"name": state.name, "atLimit": state.at, "nearLimit": state.near, "users": users}


def _overview_to_json(overview: Overview) -> dict[str, Any]:
    workers = [
        {
            "name": worker.name,
            "version": worker.version,
            "startedAt": worker.started_at.isoformat(),
            "secondsSinceBeat": round(worker.silence.total_seconds(), 3),
            "running": overview.taken.get(worker.name, 0),
        }
        for worker in overview.workers
    ]
    queue = {
        tier.value: {
            "waiting": tier_queue.waiting,
            "running": tier_queue.running,
            "suspended": tier_queue.suspended,
            "oldestSeconds": _seconds(overview.moment, tier_queue.due_since),
        }
        for tier, tier_queue in overview.queue.items()
    }
    schedules = {
        "armed": overview.schedules.armed,
        "due": overview.schedules.due,
        "oldestSeconds": _seconds(overview.moment, overview.schedules.due_since),
    }
    return {"workers": workers, "queue": queue, "endedInLastHour": _ended(overview), "schedules": schedules}


def _ended(overview: Overview) -> Mapping[str, int]:
    statuses = [status for status in ExecutionStatus if status is not ExecutionStatus.RUNNING]
    return {status.value: overview.ended.get(status, 0) for status in statuses}


def _seconds(moment: datetime, since: datetime | None) -> float | None:
    return None if since is None else max(0.0, round((moment - since).total_seconds(), 3))


def _format_duration(duration: timedelta) -> str:
    """Format a duration in one unit: `0.4 s`, `95 s`, `12 min`, `30 h`."""
    seconds = max(0.0, duration.total_seconds())
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
