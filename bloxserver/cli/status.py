"""`bloxserver status`: prints the state of the installation."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from bloxserver.cli.startup import load_settings, run
from bloxserver.settings import Settings


def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")] = False,
) -> None:
    """Print the workers, the queue of each tier, the executions that ended in the last hour, the schedules, and the
    users who are at a limit of their plan or near it.

    Exits with status 1 if the database cannot be used, if its schema is too old, or if there are waiting or running
    executions and no live worker.
    """
    run(_status(load_settings(), as_json=as_json))


async def _status(settings: Settings, *, as_json: bool) -> None:
    from bloxserver.cli.status_report import format_lines, read_status, to_json
    from bloxserver.models.database import database

    try:
        found = await read_status(settings, database)
    finally:
        await database.dispose()
    typer.echo(json.dumps(to_json(found)) if as_json else "\n".join(format_lines(found)))
    if found.problems:
        raise typer.Exit(1)
