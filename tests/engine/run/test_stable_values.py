"""`now()` and `uuid()` have the same values in each attempt at a message, on the event loop and in another process."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import JsonValue

from bloxserver.blocks.base import BlockContext, BlockError, Result
from bloxserver.blocks.expressions import evaluate
from bloxserver.blocks.registry import get_registry
from bloxserver.clients.http import GuardedClient
from bloxserver.clock import now
from bloxserver.engine.queue.recovery import reclaim_all
from bloxserver.engine.run.messages import Finished, Message, Step
from bloxserver.engine.run.pump import Pump
from bloxserver.llm.gateway import LanguageModels
from bloxserver.models.database import Database
from bloxserver.models.enums import StepStatus
from bloxserver.organism.parse import parse
from bloxserver.raw_json import RawJson, Value, plain
from bloxserver.settings import Settings
from tests.engine.pump_runs import Log, World, block, echo, organism, pump
from tests.engine.queue_claims import take
from tests.factories import create_execution, create_flow, create_user

VALUES = "[uuid(), string(now()), uuid()]"
MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
LARGE: JsonValue = {"pad": ["x" * 40] * 1_000}
COSTLY: JsonValue = [*range(3_000)]
SUM = "payload.filter(x, x % 2 == 1).map(x, x + 1).sum()"


class Recorder:
    """A block that evaluates `VALUES` and fails the first time."""

    def __init__(self, failures: int = 1) -> None:
        self.found: list[JsonValue] = []
        self._failures = failures

    async def handle(self, payload: JsonValue, context: BlockContext) -> Result:
        self.found.append(evaluate(VALUES, context.scope(payload), context.budget))
        if len(self.found) <= self._failures:
            raise BlockError("broken", "it broke")
        return "ok"


async def run(world: World, listeners: str, payload: Value) -> JsonValue:
    """Return the output of an execution."""
    parsed = parse(listeners, get_registry())
    outcome = await Pump(parsed, [], world, Log().save).run(Message(parsed.entry().name, payload))
    assert isinstance(outcome, Finished), outcome
    return plain(outcome.output)


def world() -> World:
    world = World(GuardedClient(), LanguageModels(Settings()), {})
    world.picked_up_at = MOMENT
    return world


@pytest.mark.parametrize("before", [True, False], ids=["later listener", "entry"])
async def test_a_retry_has_the_same_values(before: bool) -> None:
    recorder = Recorder()
    listener = "name: b, handler: act, retries: 1, backoff_seconds: 0.001"
    text = organism(echo("a", "b"), listener) if before else organism(listener)
    await pump(text, blocks=[block("act", recorder.handle)])
    first, second = recorder.found
    assert first == second


async def test_a_try_after_a_crash_has_the_same_values() -> None:
    recorder = Recorder(0)
    text = organism(echo("a", "b"), "name: b, handler: act")
    _, log = await pump(text, blocks=[block("act", recorder.handle)])
    # What was saved before the listener ran.
    kept = [step for step in log.saved if step.status is StepStatus.RUNNING or step.message.listener == "a"]
    await pump(text, kept=kept, blocks=[block("act", recorder.handle)])
    first, second = recorder.found
    assert first == second


async def test_the_start_of_the_entry_is_the_first_claim_of_the_execution(live_database: Database) -> None:
    async with live_database.sessions() as session:
        execution = await create_execution(session, await create_flow(session, await create_user(session)))
    first = await take(live_database, execution)
    async with live_database.transaction() as session:
        await reclaim_all(session)
    assert (await take(live_database, execution)).picked_up_at == first.picked_up_at
    assert await run(world(), organism("name: a, handler: transform, config: {expression: now()}"), None) == (
        "2026-01-02T03:04:05.000678Z"
    )


@pytest.mark.parametrize(
    "listener",
    [
        f"handler: transform, config: {{expression: '{VALUES}'}}",
        "handler: transform, config: {expression: '[payload.map(x, uuid()), string(now())]'}",
        "handler: transform, config: {output: {b: '{{ uuid() }}', a: ['{{ uuid() }} at {{ now() }}']}}",
        "handler: text.template, config: {template: '{{ uuid() }} {{ uuid() }} {{ now() }}'}",
    ],
)
async def test_another_process_has_the_same_values(listener: str) -> None:
    text = organism(f"name: a, {listener}")
    small, large = world(), world()
    payload: JsonValue = {"pad": 1}
    assert await run(small, text, payload) == await run(large, text, RawJson(json.dumps(LARGE)))
    assert (small.isolated.cpu_seconds > 0, large.isolated.cpu_seconds > 0) == (False, True)


async def test_an_expression_that_is_continued_in_another_process_has_the_same_values() -> None:
    text = organism(f"name: a, handler: transform, config: {{expression: '[string({SUM})] + {VALUES}'}}")
    small, costly = world(), world()
    _, *expected = list_of(await run(small, text, [1]))
    total, *found = list_of(await run(costly, text, COSTLY))
    assert (total, found) == ("2251500", expected)
    assert (small.isolated.cpu_seconds > 0, costly.isolated.cpu_seconds > 0) == (False, True)


def list_of(value: JsonValue) -> list[JsonValue]:
    assert isinstance(value, list)
    return value


@pytest.mark.parametrize("payload", [None, RawJson(json.dumps(LARGE))], ids=["small", "large"])
async def test_conditions_have_the_end_of_the_step(payload: Value) -> None:
    """A condition is evaluated again when an execution is resumed, and must choose the same peers."""
    when = 'now() == timestamp("2026-01-02T03:04:05.000678Z") && size(uuid()) == 36'
    text = organism(f"name: a, handler: echo, peers: [{{to: b, when: '{when}'}}]", echo("b"))
    ended = Step(
        Message("a", None), "echo", StepStatus.SUCCESS, MOMENT - timedelta(1), completed_at=MOMENT, output=payload
    )
    _, log = await pump(text, kept=[ended])
    assert log.handled() == ["b"]
    _, log = await pump(text, kept=[ended._replace(completed_at=now())])
    assert "b" not in log.handled()
