"""`bloxserver api-keys`: creates, lists and revokes API keys of users."""

from __future__ import annotations

import json
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

import typer

from bloxserver.cli.startup import load_settings, run_in_transaction

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke API keys.")

User = Annotated[str, typer.Option(help="The user's id, email, or identity, for example local:… or user_….")]


class ScopeName(StrEnum):
    READ = "read"
    WRITE = "write"
    RUN = "run"
    LLM = "llm"
    ADMIN = "admin"


@app.command()
def create(
    user: User,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "Created by the operator",
    scope: Annotated[list[ScopeName] | None, typer.Option(help="A scope; repeatable. By default all.")] = None,
    flow: Annotated[list[UUID] | None, typer.Option(help="Restrict the key to this flow; repeatable.")] = None,
    expires_in_days: Annotated[int | None, typer.Option(min=1, max=36_500, help="By default it has no end.")] = None,
) -> None:
    """Create an API key for a user, and print it. It cannot be shown again."""
    load_settings()

    async def create_key(session: Any) -> str:
        from bloxserver.clock import now
        from bloxserver.models.enums import Scope
        from bloxserver.services.api_keys import NewKey, create_api_key
        from bloxserver.services.user_accounts import find_user

        owner = await find_user(session, user)
        expires_at = None if expires_in_days is None else now() + timedelta(days=expires_in_days)
        scopes = [Scope(each.value) for each in scope or ScopeName]
        _, key = await create_api_key(session, owner.id, NewKey(name[:100], scopes, flow or None, expires_at))
        return key

    run_in_transaction(create_key)


@app.command("list")
def list_keys(
    user: User,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array, for scripts.")] = False,
) -> None:
    """Print the API keys of a user, the newest first, without the keys themselves."""
    load_settings()

    async def read(session: Any) -> str:
        from bloxserver.queries.api_keys import read_api_keys
        from bloxserver.services.user_accounts import find_user

        owner = await find_user(session, user)
        keys = [
            {
                "id": str(key.id),
                "hint": key.hint,
                "scopes": ",".join(key.scopes),
                "flows": ",".join(key.flow_ids or ()) or "all flows",
                "expires": "never" if key.expires_at is None else key.expires_at.isoformat(),
                "last use": "never" if key.last_used_at is None else key.last_used_at.isoformat(),
                "name": " ".join(key.name.splitlines()),
            }
            for key in await read_api_keys(session, owner.id)
        ]
        if as_json:
            return json.dumps(keys)
        return "\n".join("  ".join(key.values()) for key in keys) or "no keys"

    run_in_transaction(read)


@app.command()
def revoke(key_id: Annotated[UUID, typer.Argument(help="The key's id, which `api-keys list` prints.")]) -> None:
    """Revoke an API key. Every server rejects it within a second."""
    load_settings()

    async def delete(session: Any) -> str:
        from bloxserver.services.api_keys import revoke_api_key

        await revoke_api_key(session, key_id)
        return f"{key_id}: revoked"

    run_in_transaction(delete)
