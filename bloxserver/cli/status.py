"""`bloxserver status`: how the installation stands, for a person or for a script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from bloxserver import __version__
from bloxserver.models.database import Database
from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.migrate import SchemaState, schema_state
from bloxserver.queries.overview import Overview, read_overview
from bloxserver.settings import Settings

SERVABLE = (SchemaState.CURRENT, SchemaState.NEWER)


@dataclass(frozen=True)
class Status:
    """How it stands."""

    backend: str
    schema: SchemaState
    overview: Overview | None
    """Null where the schema is none that can be read."""

    @property
    def problems(self) -> list[str]:
        """What somebody should do something about."""
        if self.overview is None:
            return [f"the database's schema is {self.schema.value}: run `bloxserver migrate`"]
        # Also those that dead workers have: nobody takes them over.
        waiting = sum(of.waiting + of.running for of in self.overview.queue.values())
        if waiting and not self.overview.workers:
            return [f"no worker lives, and executions wait: {waiting}"]
        return []


async def read_status(settings: Settings, database: Database) -> Status:
    """Read it all, in one transaction. Raises what the database raises."""
    async with database.transaction(read_only=True) as session:
        connection = await session.connection()
        schema = await connection.run_sync(schema_state)
        overview = None
        if schema in SERVABLE:
            overview = await read_overview(session, timedelta(seconds=settings.heartbeat_timeout_seconds))
        return Status(connection.dialect.name, schema, overview)


def lines_of(status: Status) -> Iterator[str]:
    """For a person."""
    yield f"bloxserver {__version__}"
    yield f"database   {status.backend}, schema {status.schema.value}"
    if status.overview is not None:
        yield from _lines_of(status.overview)
    for problem in status.problems:
        yield f"problem    {problem}"


def _lines_of(overview: Overview) -> Iterator[str]:
    yield f"workers    {len(overview.workers)} alive"
    for worker in overview.workers:
        yield (
            f"  {worker.name}  version {worker.version or 'unknown'}  since {worker.started_at:%Y-%m-%d %H:%M:%S} UTC"
            f"  last beat {_span(worker.silence)} ago  running {overview.taken.get(worker.name, 0)}"
        )
    yield f"{'queue':<18} {'waiting':>8} {'running':>8} {'suspended':>9}  oldest"
    for tier, of in overview.queue.items():
        oldest = "-" if of.due_since is None else _span(overview.moment - of.due_since)
        yield f"  {tier.value:<16} {of.waiting:>8} {of.running:>8} {of.suspended:>9}  {oldest}"
    yield f"ended      {', '.join(f'{number} {name}' for name, number in _ended(overview).items())} in the last hour"
    schedules = overview.schedules
    late = "" if schedules.due_since is None else f", the oldest {_span(overview.moment - schedules.due_since)} late"
    yield f"schedules  {schedules.armed} armed, {schedules.due} due{late}"


def json_of(status: Status) -> dict[str, Any]:
    """For a script."""
    told = {} if status.overview is None else _json_of(status.overview)
    database = {"backend": status.backend, "schema": status.schema.value}
    return {"version": __version__, "database": database, **told, "problems": status.problems}


def _json_of(overview: Overview) -> dict[str, Any]:
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
            "waiting": of.waiting,
            "running": of.running,
            "suspended": of.suspended,
            "oldestSeconds": _seconds(overview.moment, of.due_since),
        }
        for tier, of in overview.queue.items()
    }
    schedules = {
        "armed": overview.schedules.armed,
        "due": overview.schedules.due,
        "oldestSeconds": _seconds(overview.moment, overview.schedules.due_since),
    }
    return {"workers": workers, "queue": queue, "endedInLastHour": _ended(overview), "schedules": schedules}


def _ended(overview: Overview) -> Mapping[str, int]:
    ends = [status for status in ExecutionStatus if status is not ExecutionStatus.RUNNING]
    return {status.value: overview.ended.get(status, 0) for status in ends}


def _seconds(moment: datetime, since: datetime | None) -> float | None:
    return None if since is None else max(0.0, round((moment - since).total_seconds(), 3))


def _span(span: timedelta) -> str:
    """A span as people say it: `0.4 s`, `95 s`, `12 min`, `30 h`."""
    seconds = max(0.0, span.total_seconds())
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
