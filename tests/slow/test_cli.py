"""The command line in a separate process."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from bloxserver.clock import now
from bloxserver.encryption import SecretCipher
from bloxserver.engine.background.retention_batches import PRUNE_LOCK
from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionRecord, ExecutionStatus, FlowRecord, SecretRecord
from bloxserver.queries.llm_keys import read_usable_keys
from bloxserver.services.llm_keys import decrypt_llm_key, store_llm_key
from bloxserver.settings import Settings
from tests.factories import create_execution, create_flow, create_trigger, create_user
from tests.processes import bloxserver
from tests.provider_server import VALID_KEYS
from tests.steps import create_step


def test_migrate_makes_the_schema_and_can_be_repeated(
    live_settings: Settings, live_database: Database, tmp_path: Path
) -> None:
    new = f"sqlite+aiosqlite:///{tmp_path}/new.db" if live_settings.uses_sqlite else live_settings.database_url
    for _ in range(2):
        migrated = bloxserver("migrate", DATABASE_URL=new)
        assert (migrated.returncode, migrated.stdout) == (0, "database schema: current\n"), migrated.stderr


def test_a_misspelt_setting_is_named(tmp_path: Path) -> None:
    database = {"DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/new.db", "DATABSE_URL": "postgresql://u:s3cret@h/d"}
    migrated = bloxserver("migrate", **database)
    assert migrated.returncode == 0
    assert migrated.stderr.splitlines() == [
        "bloxserver: warning: DATABSE_URL is not a setting and has no effect; did you mean DATABASE_URL?"
    ]


def test_a_database_that_is_away_is_told_without_its_address() -> None:
    refused = bloxserver("migrate", DATABASE_URL="postgresql://user:s3cret@127.0.0.1:1/x")
    assert refused.returncode == 1
    assert refused.stderr.startswith("bloxserver: the database cannot be used")
    assert "s3cret" not in refused.stderr


def test_what_is_wrong_with_the_database_is_told(live_settings: Settings, tmp_path: Path) -> None:
    """The database of `live_settings` is empty without `live_database`."""
    url = sa.make_url(live_settings.database_url)
    if live_settings.uses_sqlite:
        reasons = {url.set(database=f"{tmp_path}/none/x.db"): "OperationalError"}
    else:
        reasons = {
            url.set(database="none"): "the server has no database of this name",
            url: "tables are missing, run `bloxserver migrate`",
        }
    for wrong, reason in reasons.items():
        refused = bloxserver("prune", "--dry-run", DATABASE_URL=wrong.render_as_string(hide_password=False))
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr == f"bloxserver: the database cannot be used: {reason}\n"


PRODUCTION = {
    "ENV": "production",
    "ALLOW_SQLITE": "1",
    "CLERK_ISSUER": "https://clerk.example.com",
    "CORS_ORIGINS": "https://app.example.com",
    "WEBHOOK_BASE_URL": "https://flows.example.com/webhooks",
    "ENABLE_DOCS": "false",
    "API_KEY_ENCRYPTION_KEY": "kJ8s0-fQz2Lw7Xv5Nn1Bb6Mm9Rr3Tt4Yy",
}


@pytest.mark.parametrize(
    ("arguments", "environment", "told"),
    [
        (("worker",), {"DATABASE_URL": "sqlite+aiosqlite:///:memory:"}, "a worker needs PostgreSQL"),
        (("serve",), {"ENV": "production"}, "CLERK_ISSUER must be an https address in production"),
        (("serve",), {"PORT": "abc"}, "PORT: "),
        (("serve",), {"EMAIL_TEMPLATES_DIR": "/none"}, "EMAIL_TEMPLATES_DIR: /none is not a directory"),
        (("serve",), {**PRODUCTION, "DATABASE_URL": "sqlite+aiosqlite:///:memory:"}, "run `bloxserver migrate` first"),
        (("migrate",), {"DATABASE_URL": "mysql://x"}, "only sqlite and postgresql are supported"),
        (("serve",), {"DATABASE_URL": "postgresql://user@127.0.0.1:1/x"}, "the database cannot be used"),
        (
            ("status",),
            {"DATABASE_URL": "postgresql://user@127.0.0.1:1/x?unheard_of=1"},
            "unknown parameters: unheard_of",
        ),
        (
            ("serve",),
            {"HEARTBEAT_INTERVAL_SECONDS": "30"},
            "HEARTBEAT_TIMEOUT_SECONDS must be at least twice HEARTBEAT_INTERVAL_SECONDS",
        ),
    ],
)
def test_a_start_that_must_not_be_says_why(arguments: tuple[str, ...], environment: dict[str, str], told: str) -> None:
    refused = bloxserver(*arguments, **environment)
    assert refused.returncode == 1
    assert told in refused.stderr
    assert "Traceback" not in refused.stderr


async def test_prune_says_what_it_deletes(live_settings: Settings, live_database: Database) -> None:
    async with live_database.sessions() as session:
        flow = await create_flow(session, await create_user(session))
        for days in (89, 91, 92):
            moment = now() - timedelta(days=days)
            ended = {"status": ExecutionStatus.SUCCESS, "started_at": moment, "completed_at": moment}
            await create_step(session, await create_execution(session, flow, **ended))
    for arguments, told in (
        (["--dry-run"], "would be deleted: 2 executions, 2 steps, 0 versions, 0 audit events"),
        ([], "deleted: 2 executions, 2 steps, 0 versions, 0 audit events"),
        ([], "deleted: 0 executions, 0 steps, 0 versions, 0 audit events"),
    ):
        done = await asyncio.to_thread(bloxserver, "prune", *arguments, DATABASE_URL=live_settings.database_url)
        assert (done.returncode, done.stdout) == (0, f"{told}\n"), done.stderr


async def test_prune_finishes_deletions(live_settings: Settings, live_database: Database) -> None:
    async with live_database.sessions() as session:
        user = await create_user(session)
        gone, kept = await create_flow(session, user, deleted_at=now()), await create_flow(session, user)
        trigger = await create_trigger(session, kept, deleted_at=now())
        for flow in (gone, kept):
            await create_execution(session, flow, status=ExecutionStatus.SUCCESS, trigger_id=trigger.id)
    nothing = "deleted: 0 executions, 0 steps, 0 versions, 0 audit events"
    for arguments, told in (
        (["--dry-run"], ["deletions to finish: 1 flows, 1 triggers", f"would be {nothing}"]),
        ([], ["deletions finished: 1 flows, 1 triggers", nothing]),
        ([], [nothing]),
    ):
        done = await asyncio.to_thread(bloxserver, "prune", *arguments, DATABASE_URL=live_settings.database_url)
        assert (done.returncode, done.stdout.splitlines()) == (0, told), done.stderr
    async with live_database.sessions() as session:
        assert await session.get(FlowRecord, gone.id) is None
        [execution] = await session.scalars(sa.select(ExecutionRecord))
        assert (execution.flow_id, execution.trigger_id) == (kept.id, None)


async def test_prune_leaves_it_to_another_process(
    live_settings: Settings, live_database: Database, backend: str
) -> None:
    """Only on PostgreSQL. On SQLite, the command waits for the other process."""
    if backend == "sqlite":
        pytest.skip("SQLite has one writer")
    async with live_database.sessions() as session:
        flow = await create_flow(session, await create_user(session))
        await create_execution(session, flow, status=ExecutionStatus.SUCCESS, started_at=now() - timedelta(days=91))
    async with live_database.transaction() as session:
        await session.execute(sa.select(sa.func.pg_advisory_xact_lock(PRUNE_LOCK)))
        done = await asyncio.to_thread(bloxserver, "prune", DATABASE_URL=live_settings.database_url)
    assert done.stdout.splitlines() == [
        "deleted: 0 executions, 0 steps, 0 versions, 0 audit events",
        "another process is pruning and deletes the rest",
    ]


async def test_secrets_are_sealed_anew_with_the_first_key(live_settings: Settings, live_database: Database) -> None:
    old, new = (
        SecretCipher([key]) for key in ("an old key of 32 bytes or more: 1", "a new key of 32 bytes or more: 22")
    )
    async with live_database.sessions() as session:
        user = await create_user(session, tier="pro")
        for number in range(3):
            ciphertext = old.encrypt(f"value {number}", owner=user.id, name=f"S{number}")
            session.add(SecretRecord(user_id=user.id, name=f"S{number}", ciphertext=ciphertext))
        await store_llm_key(session, old, user.id, "openai", VALID_KEYS["openai"])
        await session.commit()
    environment = {
        "DATABASE_URL": live_settings.database_url,
        "API_KEY_ENCRYPTION_KEY": "a new key of 32 bytes or more: 22,an old key of 32 bytes or more: 1",
    }
    refused = await asyncio.to_thread(bloxserver, "rotate-keys", DATABASE_URL=live_settings.database_url)
    assert (refused.returncode, "API_KEY_ENCRYPTION_KEY must be set" in refused.stderr) == (1, True)
    done = await asyncio.to_thread(lambda: bloxserver("rotate-keys", **environment))
    assert (done.returncode, done.stdout) == (0, "encrypted again: 4; cannot be decrypted with any key: 0\n"), (
        done.stderr
    )
    async with live_database.sessions() as session:
        secrets = (await session.scalars(sa.select(SecretRecord).order_by(SecretRecord.name))).all()
        [key] = await read_usable_keys(session, user.id)
    assert decrypt_llm_key(new, user.id, key) == VALID_KEYS["openai"]
    assert [new.decrypt(secret.ciphertext, owner=user.id, name=secret.name) for secret in secrets] == [
        "value 0",
        "value 1",
        "value 2",
    ]
