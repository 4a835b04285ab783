"""`bloxserver audit`: exports the audit log."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime
from typing import Annotated, Any

import typer

from bloxserver.cli.startup import fail, load_settings, run
from bloxserver.clock import as_utc, iso_utc
from bloxserver.models.enums import AuditAction

app = typer.Typer(no_args_is_help=True, help="Export the audit log.")

PAGE_SIZE = 500


@app.callback()
def main() -> None:
    """Export the audit log."""


def _time(text: str) -> datetime:
    try:
        return as_utc(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{text!r} is not a time in ISO 8601, for example 2026-03-02T09:36:09Z") from None


@app.command()
def export(
    user: Annotated[str | None, typer.Option(help="Only this account: the user's id, email or identity.")] = None,
    since: Annotated[
        datetime | None, typer.Option(parser=_time, metavar="TIME", help="Only events at this time or later.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(parser=_time, metavar="TIME", help="Only events before this time.")
    ] = None,
    action: Annotated[list[AuditAction] | None, typer.Option(help="Only this action; repeatable.")] = None,
) -> None:
    """Print the events of all accounts, the oldest first, as JSON Lines.

    A time is in ISO 8601; without an offset it is UTC. The command can run while servers run.
    """
    load_settings()
    run(_export(user, since, until, action or []))


async def _export(user: str | None, since: datetime | None, until: datetime | None, actions: list[AuditAction]) -> None:
    from bloxserver.models.database import database
    from bloxserver.queries.audit import AuditFilter, position_of, read_all_events

    wanted = AuditFilter(tuple(actions), since=since, until=until)
    after = None
    try:
        user_id = None if user is None else await _user_id(user)
        while True:
            async with database.transaction(read_only=True) as session:
                events = await read_all_events(session, wanted, user_id, after, PAGE_SIZE)
            _print([_line(event) for event in events])
            if len(events) < PAGE_SIZE:
                return
            after = position_of(events[-1])
    finally:
        await database.dispose()


async def _user_id(reference: str) -> Any:
    """The id of the account. One that is an id need not exist: events outlive their user."""
    from bloxserver.ids import read_id
    from bloxserver.models.database import database
    from bloxserver.services.user_accounts import find_user

    if (user_id := read_id(reference)) is not None:
        return user_id
    async with database.transaction(read_only=True) as session:
        return (await find_user(session, reference)).id


def _line(event: Any) -> str:
    members = {
        "id": str(event.id),
        "createdAt": iso_utc(event.created_at),
        "userId": str(event.user_id),
        "actor": event.actor,
        "actorId": event.actor_id,
        "action": event.action,
        "resourceId": event.resource_id,
        "flowId": None if event.flow_id is None else str(event.flow_id),
        "address": event.address,
        "requestId": event.request_id,
        "before": event.before,
        "after": event.after,
    }
    return json.dumps(members)


def _print(lines: list[str]) -> None:
    try:
        sys.stdout.writelines(f"{line}\n" for line in lines)
        sys.stdout.flush()
    except OSError as error:  # for example a pipe whose reader has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter would fail again at its end
        fail(f"the output cannot be written: {error.strerror}")
