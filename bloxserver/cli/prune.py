"""`bloxserver prune`: deletes what the retention settings no longer keep."""

from __future__ import annotations

from typing import Annotated

import typer

from bloxserver.cli.startup import load_settings, run
from bloxserver.settings import Settings


def prune(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be deleted, without deleting it.")
    ] = False,
) -> None:
    """Delete executions, flow versions and audit events past their retention, and finish the deletion of large flows.

    Workers do the same in the background.

    EXECUTION_RETENTION_DAYS, EXECUTION_RETENTION_PER_FLOW, FLOW_VERSION_RETENTION and AUDIT_RETENTION_DAYS set the
    limits. The command can be interrupted, repeated, and run while servers run.
    """
    run(_prune(load_settings(), dry_run=dry_run))


async def _prune(settings: Settings, *, dry_run: bool) -> None:
    from bloxserver.engine.background.deletions import DeletionResult, Deletions
    from bloxserver.engine.background.retention import Retention
    from bloxserver.models.database import database

    deletions = Deletions(database)
    flows, triggers = await deletions.count_pending()
    finished = DeletionResult() if dry_run else await deletions.finish()
    pruned = await Retention(settings, database).prune(dry_run=dry_run)
    await database.dispose()
    if dry_run and (flows or triggers):
        typer.echo(f"deletions to finish: {flows} flows, {triggers} triggers")
    elif finished.users or finished.flows or finished.triggers:
        users = f"{finished.users} users, " if finished.users else ""
        typer.echo(f"deletions finished: {users}{finished.flows} flows, {finished.triggers} triggers")
    verb = "would be deleted" if dry_run else "deleted"
    rows = f"{pruned.executions} executions, {pruned.steps} steps, {pruned.versions} versions"
    typer.echo(f"{verb}: {rows}, {pruned.audit_events} audit events")
    if pruned.lock_busy or not finished.is_complete:
        typer.echo("another process is pruning and deletes the rest")
