"""`respond` in the config of webhooks."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.errors import Unprocessable
from bloxserver.queries.triggers import read_webhook
from bloxserver.services.webhook_responses import MAX_SECONDS, Respond, check_response, response_wait
from tests import factories


@pytest.mark.parametrize(
    "config",
    [
        {},
        *({"respond": until} for until in Respond),
        {"respond_seconds": 0.1},
        {"respond": "end", "respond_seconds": 60},
    ],
)
def test_valid_configs(config: dict[str, Any]) -> None:
    check_response(config)


@pytest.mark.parametrize(
    ("config", "members"),
    [
        ({"respond": "End"}, {"respond"}),
        ({"respond": {}, "respond_seconds": []}, {"respond", "respond_seconds"}),
        ({"respond_seconds": MAX_SECONDS + 1}, {"respond_seconds"}),
        ({"respond_seconds": float("nan")}, {"respond_seconds"}),
        ({"respond_seconds": -1}, {"respond_seconds"}),
        ({"respond_seconds": None}, {"respond_seconds"}),
    ],
)
def test_invalid_configs_name_their_members(config: dict[str, Any], members: set[str]) -> None:
    with pytest.raises(Unprocessable) as caught:
        check_response(config)
    assert set(caught.value.details or {}) == {f"body.config.{member}" for member in members}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, None),
        ({"respond": "immediately"}, None),
        ({"respond": "later"}, None),
        ({"respond": []}, None),
        ({"respond": "end", "respond_seconds": "x"}, None),
        ({"respond": "end"}, (Respond.END, 10.0)),
        ({"respond": "listener", "respond_seconds": 3}, (Respond.LISTENER, 3.0)),
    ],
)
async def test_wait_of_a_webhook(
    session: AsyncSession, config: dict[str, Any], expected: tuple[Respond, float] | None
) -> None:
    flow = await factories.create_flow(session, await factories.create_user(session))
    trigger = await factories.create_trigger(session, flow, config=config)
    wait = response_wait(await read_webhook(session, trigger.webhook_token or ""))
    assert (wait and (wait.until, wait.seconds)) == expected
    assert wait is None or wait.user_id == flow.user_id
