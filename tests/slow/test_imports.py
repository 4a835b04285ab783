"""Importing the application does not import libraries that only some processes or requests need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

NEEDED_LATER = {
    "alembic": "migrating",
    "aiosmtplib": "emails",
    "anthropic": "requests to a language model",
    "asyncpg": "PostgreSQL",
    "bloxserver.blocks.registry": "starting",
    "bloxserver.engine.engine": "starting",
    "bloxserver.organism.parse": "reading a definition",
    "cryptography": "secrets, and sign-in",
    "dns": "outgoing requests",
    "httpx": "outgoing requests, and sign-in",
    "jwt": "sign-in",
    "openai": "requests to a language model",
    "opentelemetry.sdk": "tracing",
    "pydantic_ai": "requests to a language model",
    "pydantic_monty": "Python snippets",
    "redis": "REDIS_URL",
    "yaml": "reading a definition",
}
"""Modules, and what they are needed for."""


def imported_by(program: str) -> set[str]:
    """Run the program in a new interpreter, with SQLite. Returns the modules of `NEEDED_LATER` that it imported."""
    program = f"{program}\nimport json, sys; print(json.dumps([*sys.modules]))"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=False,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return NEEDED_LATER.keys() & set(json.loads(ended.stdout))


def test_application_is_imported_without_what_is_needed_later() -> None:
    assert imported_by("import bloxserver.api.main") == set()


def test_start_with_a_current_schema_does_not_import_alembic(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/bloxserver.db"
    start = f"""
import asyncio
from bloxserver.api.main import prepare_database
from bloxserver.models.database import Database
from bloxserver.settings import Settings

async def start():
    settings = Settings(database_url={url!r})
    database = Database(settings)
    await prepare_database(settings, database)
    await database.dispose()

asyncio.run(start())
"""
    assert "alembic" in imported_by(start), "the first start migrates"
    assert imported_by(start) == set()
