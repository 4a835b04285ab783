"""All phases of schemathesis: at least 2,000 requests on each database."""

from __future__ import annotations

from pathlib import Path

import pytest

from bloxserver.models.database import Database
from tests.api.test_generated_requests import send_generated
from tests.schemathesis import ALL_PHASES


@pytest.mark.usefixtures("engine")
async def test_document_and_server_agree_in_all_phases(live_database: Database, tmp_path: Path) -> None:
    result = await send_generated(live_database, tmp_path, ALL_PHASES, examples=15)
    assert not result.failed, result.output
    assert result.cases >= 2_000
