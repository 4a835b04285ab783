"""Start and end of a command: load its settings, run its coroutine, and report a failure in one line."""

from __future__ import annotations

import asyncio
import os
import pwd
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NoReturn

import typer

from bloxserver.account_emails.rendering import check_templates
from bloxserver.errors import BloxError, SettingsError
from bloxserver.model_catalogue import operator_secrets
from bloxserver.observability.log import configure_logging
from bloxserver.plans_file import use_plans_file
from bloxserver.settings import Settings, get_settings, misspelt_settings
from bloxserver.storable import storable_text

MAX_ACCOUNT_LENGTH = 64


def load_checked_settings() -> Settings:
    """Load the settings of a process that serves or runs executions, and configure its logs.

    Exits with status 1, listing every problem, if a setting or a block is invalid.
    """
    from bloxserver.blocks.registry import get_registry

    settings = get_settings()
    try:
        settings.check_startup()
        use_plans_file(settings.plans_file)
        secrets = operator_secrets(settings)
        check_templates(settings.email_templates_dir)
        get_registry()
    except SettingsError as error:
        fail(str(error))
    configure_logging(level=settings.log_level, as_json=settings.is_production, secrets=secrets)
    return settings


def load_settings() -> Settings:
    """Load the settings for a command that needs only the database, and warn of misspelt ones.

    Exits with status 1 if a setting is invalid.
    """
    settings = get_settings()
    if settings.problems:
        fail(str(SettingsError(settings.problems)))
    for line in misspelt_settings():
        typer.echo(f"bloxserver: warning: {line}", err=True)
    try:
        use_plans_file(settings.plans_file)
        secrets = operator_secrets(settings)
    except SettingsError as error:
        fail(str(error))
    # The command prints its own failures.
    configure_logging(level="ERROR", as_json=False, secrets=secrets)
    return settings


def run(
    coroutine: Coroutine[Any, Any, None], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> None:
    """Run a coroutine; exits with status 1 and one line if a setting is invalid or the database fails."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(_join_sqlite_threads(coroutine))
    except SettingsError as error:
        fail(str(error))
    except BloxError as error:
        fail(error.message)
    except (OSError, SQLAlchemyError) as error:
        from bloxserver.models.transient_errors import describe_error

        fail(f"the database cannot be used: {describe_error(error)}")


def run_in_transaction(change: Callable[[Any], Awaitable[str]]) -> None:
    """Run a function with a session of a new transaction, and print what it returns after the commit."""

    async def main() -> None:
        from bloxserver.models.database import database

        act_as_operator()
        try:
            async with database.transaction() as session:
                text = await change(session)
        finally:
            await database.dispose()
        print_lines(text)

    run(main())


def act_as_operator() -> None:
    """Let the audit log name the account of the operating system that runs the command."""
    from bloxserver.models.enums import ActorKind
    from bloxserver.services.audit import Actor, current_actor

    try:
        name = storable_text(pwd.getpwuid(os.getuid()).pw_name)
    except KeyError:  # a container may run with a number that has no account
        name = str(os.getuid())
    current_actor.set(Actor(ActorKind.OPERATOR, name[:MAX_ACCOUNT_LENGTH]))


def print_lines(text: str) -> None:
    """Print a text that contains names or emails of users, without escapes that would change the terminal."""
    typer.echo("".join(each if each.isprintable() or each == "\n" else "\N{REPLACEMENT CHARACTER}" for each in text))


async def _join_sqlite_threads(coroutine: Coroutine[Any, Any, None]) -> None:
    """Await the coroutine; if it fails, wait for the threads of SQLite connections.

    The thread of a SQLite file that could not be opened calls back into this event loop when it ends.
    """
    try:
        await coroutine
    except Exception:
        for thread in threading.enumerate():
            if "_connection_worker_thread" in thread.name:
                await asyncio.to_thread(thread.join, 1)
        raise


def fail(message: str) -> NoReturn:
    """Print the message to standard error and exit with status 1."""
    typer.echo(f"bloxserver: {message}", err=True)
    raise typer.Exit(1)
