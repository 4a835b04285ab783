"""Streams with users' own keys: used first, and the platform only before the first token."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa

from bloxserver.clients.model_errors import ModelError
from bloxserver.clients.model_streams import TextDelta
from bloxserver.llm.calls import Caller, ModelCall
from bloxserver.models.database import Database
from bloxserver.models.tables import LlmCallRecord
from tests.llm.own_keys import MESSAGES, OWN_KEY, PLATFORM_KEY, Scene, keys_sent, scene
from tests.llm_server import fails
from tests.llm_streams import streams


@pytest.fixture
async def installation(live_database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    async with scene(live_database, monkeypatch) as opened:
        yield opened


class TestStreams:
    async def test_own_key_is_used_first(self, installation: Scene) -> None:
        ada = await installation.user(openai=OWN_KEY)
        installation.own.reply = streams("With ", "your key.")
        assert await streamed(installation, ada) == "With your key."
        assert (keys_sent(installation.provider), keys_sent(installation.platform)) == ([OWN_KEY], [])
        [recorded] = await calls_of(installation)
        assert (recorded.own_key, recorded.error_code) == (True, None)

    async def test_rejected_key_is_marked_and_the_platform_streams(self, installation: Scene) -> None:
        ada = await installation.user(openai=OWN_KEY)
        installation.own.reply = fails(401)
        installation.served.reply = streams("With ", "ours.")
        assert await streamed(installation, ada) == "With ours."
        assert not (await installation.row(ada)).is_valid
        assert (keys_sent(installation.provider), keys_sent(installation.platform)) == ([OWN_KEY], [PLATFORM_KEY])
        [recorded] = await calls_of(installation)
        assert (recorded.own_key, recorded.attempts) == (False, 2)

    async def test_platform_is_not_asked_after_the_first_token(self, installation: Scene) -> None:
        ada = await installation.user(openai=OWN_KEY)
        installation.own.reply = streams("With ", finish=None, end="closed")
        with pytest.raises(ModelError) as caught:
            await streamed(installation, ada)
        assert (caught.value.code, keys_sent(installation.platform)) == ("llm_cut_off", [])


async def streamed(installation: Scene, calling: Caller) -> str:
    call = ModelCall(MESSAGES, "gpt-1")
    events = [event async for event in installation.models.stream(call, calling)]
    await installation.models.aclose()  # writes the records
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def calls_of(installation: Scene) -> list[LlmCallRecord]:
    async with installation.database.sessions() as session:
        return list(await session.scalars(sa.select(LlmCallRecord)))
