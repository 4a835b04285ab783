"""`bloxserver users` and `bloxserver api-keys` in a separate process."""

from __future__ import annotations

import json

from bloxserver.api_key_format import is_well_formed
from bloxserver.models.database import Database
from bloxserver.services.user_accounts import find_user
from bloxserver.settings import Settings
from tests.factories import create_execution, create_flow
from tests.processes import bloxserver


async def test_first_key_on_an_empty_database(live_settings: Settings, live_database: Database) -> None:
    database = {"DATABASE_URL": live_settings.database_url}

    def succeed(*arguments: str) -> str:
        done = bloxserver(*arguments, **database)
        assert done.returncode == 0, done.stderr
        output: str = done.stdout
        return output.removesuffix("\n")

    assert succeed("users", "list") == "no users"
    user_id = succeed("users", "create", "--email", "ada@example.com", "--tier", "pro")
    key = succeed("api-keys", "create", "--user", "ada@example.com", "--scope", "read", "--scope", "run")
    assert is_well_formed(key)
    (listed,) = json.loads(succeed("users", "list", "--json"))
    assert (listed["id"], listed["email"], listed["tier"], listed["disabled"]) == (
        user_id,
        "ada@example.com",
        "pro",
        False,
    )
    (shown,) = json.loads(succeed("api-keys", "list", "--user", user_id, "--json"))
    assert (shown["scopes"], shown["flows"]) == ("read,run", "all flows")
    assert key not in json.dumps(shown)
    assert succeed("users", "set-tier", "ada@example.com", "enterprise") == f"{user_id}: enterprise"
    assert succeed("users", "disable", user_id) == f"{user_id}: disabled; flows that are stopping: 0"
    assert "disabled" in succeed("users", "list")
    assert succeed("users", "enable", user_id) == f"{user_id}: enabled"
    assert succeed("api-keys", "revoke", shown["id"]) == f"{shown['id']}: revoked"
    assert succeed("api-keys", "list", "--user", user_id) == "no keys"


async def test_delete_removes_a_user_with_their_flows(live_settings: Settings, live_database: Database) -> None:
    database = {"DATABASE_URL": live_settings.database_url}
    user_id = bloxserver("users", "create", "--email", "ada@example.com", **database).stdout.strip()
    async with live_database.sessions() as session:
        flow = await create_flow(session, await find_user(session, user_id))
        await create_execution(session, flow)
    refused = bloxserver("users", "delete", "ada@example.com", **database)
    assert refused.returncode == 1, "the question was not answered"
    deleted = bloxserver("users", "delete", "ada@example.com", "--yes", **database)
    assert (deleted.returncode, deleted.stdout) == (0, f"{user_id}: deleted\n"), deleted.stderr
    assert bloxserver("users", "list", **database).stdout == "no users\n"


async def test_unknown_user_is_one_line(live_settings: Settings, live_database: Database) -> None:
    for arguments in (("users", "disable", "unknown"), ("api-keys", "create", "--user", "unknown")):
        refused = bloxserver(*arguments, DATABASE_URL=live_settings.database_url)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr == "bloxserver: User not found\n"
