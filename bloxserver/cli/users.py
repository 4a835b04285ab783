"""`bloxserver users`: creates, lists, changes and deletes users."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from bloxserver.cli.startup import act_as_operator, load_settings, run, run_in_transaction
from bloxserver.cli.tiers import TierName
from bloxserver.settings import get_settings

app = typer.Typer(no_args_is_help=True, help="Create, list, change and delete users.")

User = Annotated[str, typer.Argument(help="The user's id, email, or identity, for example local:… or user_….")]


@app.command()
def create(
    email: Annotated[str, typer.Option(help="The user's email address, by which other commands find them.")],
    tier: Annotated[TierName | None, typer.Option(help="The plan; by default DEFAULT_TIER.")] = None,
    name: Annotated[str | None, typer.Option(help="The user's name.")] = None,
) -> None:
    """Create a user who signs in with API keys, and print their id."""
    load_settings()
    wanted = tier.value if tier is not None else get_settings().default_tier

    async def create_user(session: Any) -> str:
        from bloxserver.models.enums import Tier
        from bloxserver.services import user_accounts

        user = await user_accounts.create_user(session, email, Tier(wanted), name)
        return str(user.id)

    run_in_transaction(create_user)


@app.command("list")
def list_users(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array, for scripts.")] = False,
) -> None:
    """Print all users, the oldest first."""
    load_settings()

    async def read(session: Any) -> str:
        from bloxserver.queries.users import read_users

        rows = [
            {
                "id": str(user.id),
                "identity": user.clerk_id,
                "email": user.email,
                "tier": str(user.tier),
                "disabled": user.disabled_at is not None,
            }
            for user in await read_users(session)
        ]
        if as_json:
            return json.dumps(rows)
        return "\n".join("  ".join(_cell(value) for value in row.values()) for row in rows) or "no users"

    run_in_transaction(read)


@app.command()
def set_tier(
    user: User,
    tier: Annotated[TierName, typer.Argument(help="The new plan.")],
    until_subscription: Annotated[
        bool, typer.Option("--until-subscription", help="Let the next change of the user's subscription replace it.")
    ] = False,
) -> None:
    """Change the plan of a user. It applies to their next request, and subscriptions do not change it."""
    load_settings()

    async def change(session: Any) -> str:
        from bloxserver.models.enums import Tier
        from bloxserver.services import user_accounts

        found = await user_accounts.find_user(session, user)
        await user_accounts.set_tier(session, found, Tier(tier.value), is_fixed=not until_subscription)
        return f"{found.id}: {tier.value}"

    run_in_transaction(change)


@app.command()
def disable(user: User) -> None:
    """Refuse all requests of a user, and stop their flows."""
    load_settings()

    async def change(session: Any) -> str:
        from bloxserver.services.user_accounts import disable_user, find_user

        found = await find_user(session, user)
        stopped = await disable_user(session, found)
        return f"{found.id}: disabled; flows that are stopping: {stopped}"

    run_in_transaction(change)


@app.command()
def enable(user: User) -> None:
    """Accept requests of a disabled user again. Their flows stay stopped."""
    load_settings()

    async def change(session: Any) -> str:
        from bloxserver.services.user_accounts import enable_user, find_user

        found = await find_user(session, user)
        await enable_user(session, found)
        return f"{found.id}: enabled"

    run_in_transaction(change)


@app.command()
def delete(
    user: User, yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False
) -> None:
    """Delete a user with their flows, executions, secrets and keys. Their identity cannot sign in again.

    If the command is interrupted, a worker or `bloxserver prune` deletes the rest of the rows.
    """
    load_settings()
    if not yes:
        typer.confirm(f"Delete {user} and all their data?", abort=True)
    run(_delete(user))


async def _delete(reference: str) -> None:
    from bloxserver.engine.background.deletions import Deletions
    from bloxserver.models.database import database
    from bloxserver.services.account_deletions import delete_account
    from bloxserver.services.user_accounts import find_user

    act_as_operator()
    try:
        async with database.transaction() as session:
            user_id = (await find_user(session, reference)).id
            await delete_account(session, user_id)
        finished = await Deletions(database).finish()
    finally:
        await database.dispose()
    typer.echo(f"{user_id}: deleted")
    if not finished.is_complete:
        typer.echo("another process deletes the rest of the rows")


def _cell(value: object) -> str:
    return ("disabled" if value else "enabled") if isinstance(value, bool) else " ".join(str(value).splitlines())
