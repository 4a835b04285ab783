"""The texts of agents in the events of their executions, while the model writes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, cast
from uuid import uuid4

import httpx
import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from bloxserver.api import watching
from bloxserver.api.main import app
from bloxserver.api.shutdown import Shutdown
from bloxserver.api.watching import ExecutionWatcher, Watch
from bloxserver.engine.engine import Engine
from bloxserver.engine.live_texts import AgentText
from bloxserver.models.database import Database
from bloxserver.models.enums import Scope
from bloxserver.models.execution_changes import change_key
from bloxserver.models.tables import LlmCallRecord
from bloxserver.services.api_keys import NewKey, create_api_key
from bloxserver.settings import Settings
from tests import factories
from tests.api.contract import assert_problem, covers
from tests.api.sse import Event, validated
from tests.api.test_events import Reader, reading
from tests.api.test_watching import Source
from tests.clerk import clerk_authentication
from tests.engine.running_engine import accept, run, started_flow, steps_of
from tests.llm_server import LanguageModelServer, Reply, calls, language_model
from tests.llm_streams import streams
from tests.server import run_server

KEY = "sk-canary-key-4711"
AGENT = """
organism: {name: writer}
listeners:
  - {name: write, description: Writes, prompt: Be brief., retries: 1, backoff_seconds: 0.1, peers: [look]}
  - {name: look, description: Looks, handler: echo}
"""
CACHED = """
organism: {name: writer}
listeners:
  - {name: wait, description: Waits, prompt: Wait., peers: [{to: write, on: answer}]}
  - {name: write, description: Writes, prompt: Be brief., temperature: 0}
"""


@pytest.fixture(params=["one process", "worker and replica"])
def processes(request: pytest.FixtureRequest, live_settings: Settings) -> str:
    if live_settings.uses_sqlite and request.param != "one process":
        pytest.skip("SQLite is for one process")
    return str(request.param)


@asynccontextmanager
async def serving(
    settings: Settings, database: Database, processes: str, *script: Reply
) -> AsyncIterator[tuple[int, LanguageModelServer]]:
    """The API and a worker, with a scripted model. Yields the port."""
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(language_model(script))
        given = {"llm_base_url": model.url, "llm_model": "scripted", "llm_api_key": SecretStr(KEY)}
        settings = settings.model_copy(update=given)
        watcher = app.state.watcher
        if processes == "one process":
            engines = [Engine(settings, database, run_worker=True, watcher=watcher)]
        else:
            other = Database(settings)
            stack.push_async_callback(other.dispose)
            engines = [
                Engine(settings, database, run_worker=False, watcher=watcher),
                Engine(settings, other, run_worker=True),
            ]
        for engine in engines:
            await engine.start()
            stack.push_async_callback(engine.stop)
        yield await stack.enter_async_context(run_server()), model


async def until_text(reader: Reader, wanted: str) -> list[Event]:
    """The next events, until their texts have these characters at least."""
    events: list[Event] = []
    while len(text_of(events)) < len(wanted):
        events.append(await reader.event())
    return events


async def until_end(reader: Reader) -> list[Event]:
    events: list[Event] = []
    while not events or events[-1].id != "end":
        events.append(await reader.event())
    return events


def parts_of(events: list[Event]) -> list[dict[str, Any]]:
    return [event.data for event in events if event.kind == "agent.text"]


def text_of(events: list[Event]) -> str:
    return "".join(part["text"] for part in parts_of(events))


@covers("events.agent-text")
async def test_text_is_sent_while_the_model_writes(
    live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database, processes: str
) -> None:
    go = asyncio.Event()
    async with serving(live_settings, live_database, processes, streams("I ", "am ", go, "done.")) as (port, _):
        execution = await accept(live_client, await started_flow(live_client, AGENT), {"text": "Go."})
        async with reading(port, f"{execution}/events") as reader:
            early = await until_text(reader, "I am ")
            assert (await live_client.get(execution)).json()["status"] == "running"
            go.set()
            late = await until_end(reader)
        (step,) = await steps_of(live_client, execution)
    events = early + late
    assert text_of(events) == "I am done."
    assert step["outputPayload"] == '{"text": "I am done."}'
    assert (step["inputTokens"], step["outputTokens"]) == (10, 5)
    parts = parts_of(events)
    assert {(part["stepId"], part["listener"], part["attempt"], part["answer"]) for part in parts} == {
        (step["id"], "write", 1, 1)
    }
    assert [part["offset"] for part in parts] == [
        sum(len(part["text"]) for part in parts[:number]) for number in range(len(parts))
    ]
    assert all(event.id is None for event in events if event.kind == "agent.text")
    for event in events:
        validated(event)
    last_text = max(number for number, event in enumerate(events) if event.kind == "agent.text")
    ends = [number for number, event in enumerate(events) if event.kind == "step" and event.data["status"] == "success"]
    assert last_text < ends[0], "the text precedes the end of its step"


async def test_late_client_gets_the_text_so_far(
    live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database, processes: str
) -> None:
    go = asyncio.Event()
    async with serving(live_settings, live_database, processes, streams("I ", "am ", go, "done.")) as (port, _):
        execution = await accept(live_client, await started_flow(live_client, AGENT))
        async with reading(port, f"{execution}/events") as first:
            await until_text(first, "I am ")
            async with reading(port, f"{execution}/events") as second:
                assert text_of(await until_text(second, "I am ")) == "I am "
                go.set()
                rest = [text_of(await until_end(reader)) for reader in (first, second)]
    assert rest == ["done.", "done."]


async def test_attempts_and_answers_of_a_conversation_begin_again(
    live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database, processes: str
) -> None:
    go = asyncio.Event()
    script = [
        streams(go, "I w", finish=None),
        calls(("look", {"input": 1}), text="Let me look."),
        streams("I ", "am done."),
    ]
    async with serving(live_settings, live_database, processes, *script) as (port, _):
        execution = await accept(live_client, await started_flow(live_client, AGENT))
        async with reading(port, f"{execution}/events") as reader:
            await reader.event()
            go.set()
            events = await until_end(reader)
        assert (await live_client.get(execution)).json()["outputPayload"] == '{"text": "I am done."}'
    texts: dict[tuple[int, int], str] = {}
    for part in parts_of(events):
        place = part["attempt"], part["answer"]
        assert part["offset"] == len(texts.get(place, ""))
        texts[place] = texts.get(place, "") + part["text"]
    # The first attempt may have failed before the worker knew of the watcher.
    assert texts.pop((1, 1), "I w") == "I w"
    assert texts == {(2, 1): "Let me look.", (2, 2): "I am done."}


async def test_secret_of_the_operator_is_replaced_if_it_is_split_between_parts(
    live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database
) -> None:
    go = asyncio.Event()
    reply = streams("The key is ", KEY[:7], go, KEY[7:], " now.")
    async with serving(live_settings, live_database, "one process", reply) as (port, _):
        execution = await accept(live_client, await started_flow(live_client, AGENT))
        async with reading(port, f"{execution}/events") as reader:
            early = await until_text(reader, "The key is ")
            go.set()
            text = text_of(early + await until_end(reader))
        ended = (await live_client.get(execution)).json()
    assert text == "The key is [setting LLM_API_KEY] now."
    assert ended["outputPayload"] == f'{{"text": "{text}"}}'


async def test_answer_from_the_cache_is_one_part(
    live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database
) -> None:
    go = asyncio.Event()
    script = [streams("Now."), streams("I ", "am ", "done."), streams(go, "Now.")]
    async with serving(live_settings, live_database, "one process", *script) as (port, model):
        path = await started_flow(live_client, CACHED)
        await run(live_client, path)
        execution = await accept(live_client, path)
        async with reading(port, f"{execution}/events") as reader:
            await reader.event()
            go.set()
            parts = parts_of(await until_end(reader))
        _, step = await steps_of(live_client, execution)
    assert [(part["offset"], part["text"]) for part in parts if part["listener"] == "write"] == [(0, "I am done.")]
    assert (step["inputTokens"], step["outputTokens"], len(model.requests)) == (0, 0, 3)


async def test_calls_of_agents_are_recorded_with_the_time_of_the_first_token(
    live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database
) -> None:
    async with serving(live_settings, live_database, "one process", streams("I ", "am done.")):
        await run(live_client, await started_flow(live_client, AGENT))
    async with live_database.transaction(read_only=True) as session:
        (call,) = (await session.scalars(sa.select(LlmCallRecord))).all()
    assert (call.input_tokens, call.output_tokens, call.attempts, call.error_code) == (10, 5, 1, None)
    assert call.first_token_ms is not None
    assert 0 <= call.first_token_ms <= call.duration_ms


async def test_events_of_another_user_are_not_found(
    live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database
) -> None:
    go = asyncio.Event()
    async with serving(live_settings, live_database, "one process", streams("I ", go, "do.")) as (port, _):
        execution = await accept(live_client, await started_flow(live_client, AGENT))
        async with live_database.transaction() as session:
            stranger = await factories.create_user(session)
            _, key = await create_api_key(session, stranger.id, NewKey("Theirs", (Scope.READ,)))
        async with reading(port, f"{execution}/events") as reader:
            await until_text(reader, "I ")
            headers = {"Authorization": f"Bearer {key}"}
            async with clerk_authentication(), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                refused = await client.get(f"{execution}/events", headers=headers)
            go.set()
    assert_problem(refused, 404, "execution_not_found", "Execution not found")


class TestWatch:
    """What one open response does with the parts that arrive."""

    def watch(self) -> Watch:
        return Watch(cast(Any, None), Shutdown(), PART.execution_id, with_steps=True)

    def test_parts_follow_each_other_without_gaps_and_repetitions(self) -> None:
        watch = self.watch()
        assert not watch.hear(part(2, "do")), "the beginning is missing"
        assert [watch.hear(each) for each in (part(0, "I "), part(0, "I do"), part(2, "do."))] == [True] * 3
        assert not watch.hear(part(8, "later"))
        assert [(each.offset, each.text) for each in watch.take_texts()] == [(0, "I "), (2, "do"), (4, ".")]
        assert watch.take_texts() == []

    def test_new_answer_or_attempt_begins_again(self) -> None:
        watch = self.watch()
        for each in (part(0, "I "), part(0, "So", answer=2), part(2, "do."), part(0, "I ", attempt=2)):
            assert watch.hear(each)
        assert not watch.hear(part(1, "o", attempt=2, answer=2))
        heard = [(each.attempt, each.answer, each.text) for each in watch.take_texts()]
        assert heard == [(1, 1, "I "), (1, 2, "So"), (2, 1, "I ")], "what is older than the last part is dropped"

    def test_response_to_a_slow_client_holds_a_limited_number_of_characters(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watching, "MAX_HELD", 4)
        watch = self.watch()
        assert [watch.hear(part(2 * number, "ab")) for number in range(5)] == [True] * 5
        assert [each.offset for each in watch.take_texts()] == [0, 2]
        assert not watch.hear(part(10, "ab")), "it asks for the rest"
        assert watch.hear(part(0, "ab" * 6))
        assert [(each.offset, each.text) for each in watch.take_texts()] == [(4, "abababab")]

    async def test_gap_and_a_new_watch_are_announced(self, live_database: Database) -> None:
        watcher, announced = ExecutionWatcher(), []

        def announce(keys: frozenset[str], *, is_new: bool) -> None:
            announced.append((keys, is_new))

        end = watcher.on_watch(announce)
        watch = Watch(cast(Any, Source(live_database)), Shutdown(), PART.execution_id, with_steps=True)
        without_steps = Watch(cast(Any, Source(live_database)), Shutdown(), uuid4())
        for each in (without_steps, watch):
            assert await watcher.wait(each, 10), "the execution does not exist"
        keys = frozenset([change_key(PART.execution_id)])
        assert announced == [(keys, True)]
        watcher.hear(part(0, "I "))
        watcher.hear(part(8, "later"))
        assert announced == [(keys, True)] * 2
        end()
        watcher.hear(part(8, "later"))
        assert len(announced) == 2
        assert [each.text for each in watch.take_texts()] == ["I "]
        for each in (without_steps, watch):
            await watcher.end(each)


PART = AgentText(uuid4(), uuid4(), "a", 1, 1, 0, "")


def part(offset: int, text: str, *, attempt: int = 1, answer: int = 1) -> AgentText:
    return replace(PART, offset=offset, text=text, attempt=attempt, answer=answer)
