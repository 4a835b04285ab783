"""`bloxserver audit export` in a separate process."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from bloxserver.cli.audit import PAGE_SIZE
from bloxserver.clock import iso_utc, now
from bloxserver.models.database import Database
from bloxserver.models.enums import ActorKind
from bloxserver.models.tables import AuditEventRecord
from bloxserver.settings import Settings
from tests.processes import bloxserver


def export(settings: Settings, *arguments: str) -> list[dict[str, Any]]:
    done = bloxserver("audit", "export", *arguments, DATABASE_URL=settings.database_url)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def output_of(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {"PATH": "/usr/bin:/bin", **environment}
    return subprocess.run(["bash", "-c", command], env=variables, capture_output=True, text=True, check=True)


async def test_commands_of_operators_are_exported(live_settings: Settings, live_database: Database) -> None:
    def succeed(*arguments: str) -> str:
        done = bloxserver(*arguments, DATABASE_URL=live_settings.database_url)
        assert done.returncode == 0, done.stderr
        output: str = done.stdout
        return output.strip()

    user_id = succeed("users", "create", "--email", "ada@example.com")
    other_id = succeed("users", "create", "--email", "bob@example.com")
    key = succeed("api-keys", "create", "--user", user_id)
    [shown] = json.loads(succeed("api-keys", "list", "--user", user_id, "--json"))
    succeed("api-keys", "revoke", shown["id"])
    succeed("users", "set-tier", user_id, "pro")
    succeed("users", "disable", user_id)
    succeed("users", "enable", user_id)
    events = export(live_settings, "--user", "ada@example.com")
    succeed("users", "delete", user_id, "--yes")
    actions = [
        "user.created",
        "api_key.created",
        "api_key.revoked",
        "user.tier_changed",
        "user.disabled",
        "user.enabled",
    ]
    assert [event["action"] for event in events] == actions
    after_deletion = export(live_settings, "--user", user_id)
    assert [event["action"] for event in after_deletion] == [*actions, "user.deleted"]
    assert after_deletion[: len(events)] == events
    account = output_of("id -un").stdout.strip()
    for event in after_deletion:
        assert (event["actor"], event["actorId"], event["userId"]) == ("operator", account, user_id)
        assert (event["address"], event["requestId"]) == (None, None)
    everything = export(live_settings)
    assert [event["userId"] for event in everything].count(other_id) == 1
    assert key not in json.dumps(everything)
    [tier] = export(live_settings, "--action", "user.tier_changed")
    assert (tier["before"], tier["after"]) == ({"tier": "free"}, {"tier": "pro"})


async def test_many_events_are_exported_in_order(live_settings: Settings, live_database: Database) -> None:
    moment, user_id = now(), uuid4()
    values = {"user_id": user_id, "actor": ActorKind.USER, "actor_id": "\x1b[2Jé", "action": "a", "resource_id": "r"}
    number = 2 * PAGE_SIZE
    times = [moment + timedelta(microseconds=index // 7) for index in range(number)]
    async with live_database.transaction() as session:
        await session.execute(sa.insert(AuditEventRecord), [values | {"created_at": time} for time in reversed(times)])
    events = export(live_settings)
    assert [event["createdAt"] for event in events] == [iso_utc(time) for time in times]
    assert len({event["id"] for event in events}) == number
    assert events[0]["actorId"] == "\x1b[2Jé"
    since, until = iso_utc(times[7]), iso_utc(times[21])
    assert [event["createdAt"] for event in export(live_settings, "--since", since, "--until", until)] == [
        iso_utc(time) for time in times[7:21]
    ]
    output = bloxserver("audit", "export", DATABASE_URL=live_settings.database_url).stdout
    assert output.isascii()
    assert "\x1b" not in output


async def test_reader_that_ends_gets_no_traceback(live_settings: Settings, live_database: Database) -> None:
    values = {"user_id": uuid4(), "actor": "user", "actor_id": "a", "action": "a", "resource_id": "r" * 64}
    async with live_database.transaction() as session:
        await session.execute(sa.insert(AuditEventRecord), [values] * 2 * PAGE_SIZE)
    command = f"{sys.executable} -m bloxserver audit export | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = output_of(command, DATABASE_URL=live_settings.database_url)
    assert done.stdout.splitlines()[-1] == "1"
    assert done.stderr == "bloxserver: the output cannot be written: Broken pipe\n"


async def test_unknown_user_is_one_line(live_settings: Settings, live_database: Database) -> None:
    refused = bloxserver("audit", "export", "--user", "unknown", DATABASE_URL=live_settings.database_url)
    assert (refused.returncode, refused.stdout, refused.stderr) == (1, "", "bloxserver: User not found\n")
    assert export(live_settings, "--user", str(uuid4())) == []
