"""The server accepts and rejects what the OpenAPI document says: requests that schemathesis generates from it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bloxserver.api.main import app
from bloxserver.llm.gateway import LanguageModels
from bloxserver.models.database import Database
from bloxserver.models.tables import Tier, UserRecord
from tests.clerk import clerk_authentication, override_settings
from tests.database_override import override_database
from tests.llm.catalogues import settings_of
from tests.schemathesis import Result, run_schemathesis
from tests.server import run_server

KEY = "kJ8s0-fQz2Lw7Xv5Nn1Bb6Mm9Rr3Tt4Yy"
HOUR = 3600


async def send_generated(database: Database, directory: Path, phases: str, *, examples: int, seed: int = 1) -> Result:
    """Send generated requests to a server, as a user without narrow limits."""
    with override_settings(API_KEY_ENCRYPTION_KEY=KEY), override_database(app, database):
        async with database.transaction() as session:
            session.add(UserRecord(clerk_id="ada", tier=Tier.ENTERPRISE))
        # The models of the requests are unknown: no provider is asked.
        provider = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "models": ["parrot-1"]}
        app.state.language_models = LanguageModels(settings_of(directory, {"providers": {"first": provider}}))
        async with clerk_authentication() as clerk, run_server() as port:
            authorization = clerk.headers("ada", exp=int(time.time()) + HOUR)["Authorization"]
            try:
                return await run_schemathesis(
                    port, authorization, directory, phases=phases, examples=examples, seed=seed
                )
            finally:
                app.state.language_models = None


@pytest.mark.usefixtures("engine")
async def test_document_and_server_agree(live_database: Database, tmp_path: Path, backend: str) -> None:
    """Sends different random requests to each database. The examples of the document are the same for both."""
    phases, seed = ("examples,fuzzing", 1) if backend == "sqlite" else ("fuzzing", 2)
    result = await send_generated(live_database, tmp_path, phases, examples=2, seed=seed)
    assert not result.failed, result.output
    assert result.cases >= 100
